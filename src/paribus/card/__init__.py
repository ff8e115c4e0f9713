"""`paribus doctor --gpu`: what a card computes, whether it is right, and how fast; for somebody to hand on."""
