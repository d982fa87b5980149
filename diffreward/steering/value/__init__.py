"""Soft values of states on the way, fitted to rewards: what SVDD may judge candidates by."""
