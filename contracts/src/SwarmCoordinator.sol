// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Bootnodes} from "./Bootnodes.sol";
import {Peers} from "./Peers.sol";
import {Reports} from "./Reports.sol";
import {Rounds} from "./Rounds.sol";
import {Config} from "./Types.sol";

/// @title One swarm's public record: who its peers are, which round it is, what each peer reports
/// @notice Not upgradeable: a new version is a new swarm. No tokens, no stake, no slashing; leaderboards are for those who index the events.
/// Selectors and events are those of Gensyn's SwarmCoordinator 0.4.2 wherever its client calls them, so that such a client can take part.
/// @dev Rounds: the clock and the roles · Bootnodes · Peers: claims and proofs · Reports: rewards and votes.
contract SwarmCoordinator is Bootnodes, Reports {
    constructor(address owner, Config memory config) Rounds(owner, config) Peers(config) Reports(config) {}
}
