"""Running things: a run is (commit, overrides), computed in a clean clone and kept as a DVC experiment.

    run.py         what a run is called, what it is asked for, how it ended
    repository.py  git: DVC's experiments as references, clones of a commit
    worker.py      one run after another in a process that has loaded DVC once
    engine.py      what a study asks of whatever runs it
    local.py       the engine of this machine: a pool of workers
    leftovers.py   what killed runs left behind, removed

The user's checkout is read, and never written to: nothing here checks out, resets or stashes anything there. What
outlives a run goes to `.paribus`, `refs/exps` and DVC's cache.
"""
