"""Running things: a run is (commit, overrides), computed in a clean clone and kept as a DVC experiment.

    run.py         a run's name, specification and outcome
    repository.py  git: DVC's experiments as references, clones of a commit
    worker.py      one run after another in a process that has loaded DVC once
    engine.py      the interface between a study and what computes its runs
    local.py       the engine of this machine: a pool of workers
    ray_engine.py  the engine of several machines: a Ray task for each run
    cluster.py     the machines of a Ray cluster, and what each lacks
    elsewhere.py   what a machine of the cluster does: its checkout, its runs
    states.py      training states in the DVC remote
    settings.py    execute.yaml
    live.py        the step that a run is at, here or elsewhere
    leftovers.py   removes what killed runs left behind

The user's checkout is only read: nothing here checks out, resets or stashes anything there. What
outlives a run goes to `.paribus`, `refs/exps` and DVC's cache.
"""
