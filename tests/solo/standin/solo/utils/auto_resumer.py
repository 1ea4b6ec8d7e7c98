class AutoResumer:
    SHOULD_MATCH = ["name", "method"]
