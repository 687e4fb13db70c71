"""What a process of the chain imports, and when."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import swarmgame_chain.cli, swarmgame_chain.dev, swarmgame_chain.gateway.pod, swarmgame_chain.reporter
found = {"early": "web3" in sys.modules}
import swarmgame_chain.contract, swarmgame_chain.providers
found["late"] = "web3" in sys.modules
found["others"] = sorted({name.split(".")[0] for name in sys.modules} & {"py_ecc", "requests", "urllib3"})
found["recursion limit"] = sys.getrecursionlimit()
from eth_keyfile import keyfile
found["key of 1"] = keyfile.bls.SkToPk(1).hex()
import py_ecc.bls, py_ecc.bls12_381, py_ecc.secp256k1
from swarmgame_chain import light_imports
found["key of 1 by py_ecc"] = py_ecc.bls.G2ProofOfPossession.SkToPk(1).hex()
found["orders"] = [
    light_imports.BLS12_381_ORDER == py_ecc.bls12_381.curve_order, light_imports.SECP256K1_ORDER == py_ecc.secp256k1.N
]
from web3._utils import http_session_manager
import requests
found["session"] = type(http_session_manager.HTTPSessionManager().cache_and_return_session("http://a")).__module__
found["errors"] = http_session_manager.requests.HTTPError is requests.HTTPError
print(json.dumps(found))
"""


def test_web3_is_imported_late_and_what_only_other_uses_need_at_its_first_use() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    assert (found["early"], found["late"], found["others"], found["recursion limit"]) == (False, True, [], 1_000)
    assert found["key of 1"] == found["key of 1 by py_ecc"]
    assert found["orders"] == [True, True]
    assert (found["session"], found["errors"]) == ("requests.sessions", True)
