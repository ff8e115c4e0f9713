"""`paribus try`: is this change better? One change against a baseline, and the ledger of everything that was tried.

terms.py      experiments/try.yaml: baseline, stage, metric, smallest effect, seeds, budget
sides.py      the change and the baseline: commits, what differs, steps of equal tokens, fingerprints
decision.py   keep, discard or undecided, from the differences at matched seeds
online.py     the level of the next test, so that of all that is kept few are noise
ledger.py     what was tried, append-only, shared by all worktrees of a repository
attempt.py    a try from its first seed to its verdict, on an engine
stack.py      everything that was kept against the first baseline, and without each of its parts
"""
