"""The loop that runs any attack's rule over any number of samples through a fixed number of slots.

A slot holds all that is known of one sample under attack (:class:`Rows`). One turn: one forward and
input-gradient backward of all slots; mark the fooled and keep their points; one step kernel over all rows,
each with its own eps and step size. Rows that are fooled, out of steps or cycling then leave, and others take
their slots, so that a fooled sample costs nothing from then on and the model always sees full batches.

* A sample's *attempts* (epsilons, targets, restarts) follow one another, each only if the last one failed;
  the :class:`Plan` knows them. Nothing that a sample does depends on which others are in the slots, so
  neither the number of slots nor the order of the data changes a result, as long as the model's own forward
  treats rows independently.
* A memoryless rule is a deterministic map, so an iterate that comes back proves that no later step can
  succeed: its attempt ends there with the same verdict. The step kernels fold a 64-bit fingerprint of each
  row for that.
* Where the search runs on a prepared copy of the model, a success counts once the caller's own model is
  fooled too. Samples for which it is not go through the same loop again on the caller's own model.
* On a CPU a point that has taken its last step waits until enough others have, and they share a forward
  without backward. On a GPU shapes never change, a CUDA graph replays the turn, and flags are read one turn
  late so that the device never waits for the host: a row that is done rests in its slot for that turn.
"""

from brittle.engine.loop import Engine, distances
from brittle.engine.plan import Attempts, Plan, Rule, Settings, start_warm_or_cold
from brittle.engine.rows import Chunk, Rows

__all__ = [
    "Attempts",
    "Chunk",
    "Engine",
    "Plan",
    "Rows",
    "Rule",
    "Settings",
    "distances",
    "start_warm_or_cold",
]
