"""Every page a person reads: the report, verdicts, the noise floor, the plan."""
