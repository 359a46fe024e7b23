"""Explaining a model: `relevance`, the plan and the ledger, and what they check and show.

The rooms, from top to bottom; each imports from those below it alone, and from the core, rules and composites:

- `relevance`, `ledger`: what users call. `source`, `devices`, `store`: what `lrp_jax.explain_dataset` is made of.
- `propagation`: one call explained, forwards and backwards.
- `hidden`: hidden values by name. `checks`: what is looked at before and after.
- `growth`: how much relevance grows on its way, or is lost.
- `accounts`: where every unit of relevance went. `models`: a model, taken apart and traced. `targets`: what is
  explained. `fingerprint`: what identifies samples and runs.
- `display`: tables and pictures of arrays.
"""
