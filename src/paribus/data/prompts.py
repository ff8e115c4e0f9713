"""The fixed prompts: every checkpoint of every run answers them, so that runs can be compared by reading.

They are constants and not drawn from a corpus: whatever a run was trained on, the same words were put to it.
"""

PROMPTS = (
    "Hello! How are you?",
    "Tell me about yourself.",
    "Count from 8 to 12.",
    "How many are 12 and 30 together?",
    "What is the capital of France?",
    "Mia has 3 boxes with 4 shells in each. She gives 5 shells away. How many shells does she have left?",
    "A book costs 12 coins and a pen costs 3 coins. What do 2 books and 4 pens cost together?",
    "Once upon a time there was a fox who",
)

LONGEST = 100  # tokens of an answer
