"""paribus: reproducible ablations of small language models trained from scratch."""

import os

__version__ = "0.1.0"

# libgomp's threads spin for milliseconds at every barrier, which starves each other as soon as anything else runs on
# the machine. Measured on two cores beside one busy process: products of 128 x 192 by 192 x 768 run 18 times as fast
# with this; alone, as fast. It is read when torch is loaded, so it stands here.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
