"""NorMuon for surogate."""
