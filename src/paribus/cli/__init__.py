"""The command line: one thin command per stage and tool. The only place where imports are late for speed."""
