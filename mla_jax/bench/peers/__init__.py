"""Other frameworks doing the same work: optional extras, imported only when they are measured."""
