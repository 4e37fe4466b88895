"""The one place for SQL: tables, queries, the queue, migrations.

Everyone else speaks to the ledger through `port`, with the values of `records` and `states`; only `bootstrap` names the
classes behind it.
"""
