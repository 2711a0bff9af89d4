"""Step labels from any policy and any problems with gold answers: `vlrm synth labels`."""
