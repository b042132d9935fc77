"""The steps alone: every commit, hop and call that one request of Parley waits for, and nothing in them.

client -> front:  POST, one insert, 202; then one confirmed publish
          worker: one call to the holder (one select, one insert), one insert, ack, one provider call, one update, one
                  confirmed publish
          store:  one insert, one confirmed publish, ack
client <- front:  one update, ack; whoever waits is answered with what was written

Built of the raw pipeline's parts. What it takes longer than the raw pipeline is the price of the promises, whoever
writes the code between; the rest of Parley's latency is Parley's code. One request at a time only: it groups nothing.
"""
