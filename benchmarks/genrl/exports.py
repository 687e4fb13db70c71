"""Add the name that GenRL 0.3.0 imports from `hivemind` and that hivemind 1.1.12 no longer exports.

Import this module before `genrl`.
"""

import hivemind
from hivemind.utils.timed_storage import get_dht_time

hivemind.get_dht_time = get_dht_time
