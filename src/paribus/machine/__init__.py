"""The machine a stage runs on: hardware, process set-up, locks, interrupts, provenance."""
