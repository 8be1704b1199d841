"""ModelFactory: from a Datanet version to a deployed adapter. Joins training's stages; knows neither API nor ledger."""
