"""The answer: keeps and serves what came out.

Owns      results (the one ending of each request), late proposals, the event log of every request, transcripts.
Receives  session.progressed (best effort), session.ended, session.abandoned.
Publishes result.updated (best effort), and once a request has ended one of
          result.completed | result.incomplete | result.failed | result.refused | result.cancelled.
Serves    internal HTTP: event pages, the ledger of attempts and waits, transcripts, results by id.
"""
