"""Explaining a model: `relevance`, the plan and the ledger, and what they check and show."""
