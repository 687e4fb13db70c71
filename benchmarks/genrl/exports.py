"""Puts back what GenRL 0.3.0 imports from `hivemind` and hivemind 1.1.12 no longer exports there. Import it before
`genrl`.
"""

import hivemind
from hivemind.utils.timed_storage import get_dht_time

hivemind.get_dht_time = get_dht_time
