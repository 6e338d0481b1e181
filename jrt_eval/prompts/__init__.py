"""Windows and read-twice prompts as pure functions of a document."""
