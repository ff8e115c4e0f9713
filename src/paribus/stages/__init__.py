"""One function per DVC stage: read the config, wire the parts, write the outputs; metrics come last."""
