// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";

import {Config, InvalidConfig, InvalidRoundNumber, RoundAlreadyAnchored, RoundNotOver} from "./Types.sol";

/// @title The swarm's clock, and who may do what
/// @notice Rounds have one stage. A stage manager ends a round when the swarm is done with it; once it has lasted `roundDuration`, anyone
/// may, so that no key can stall the swarm. Pausing stops registrations and reports, never the clock.
abstract contract Rounds is AccessControl, Pausable {
    bytes32 public constant OWNER_ROLE = keccak256("OWNER_ROLE");
    bytes32 public constant STAGE_MANAGER_ROLE = keccak256("STAGE_MANAGER_ROLE");
    bytes32 public constant BOOTNODE_MANAGER_ROLE = keccak256("BOOTNODE_MANAGER_ROLE");

    uint32 public immutable roundDuration;
    uint32 public immutable minRoundTime;

    uint64 private _round;
    uint64 private _roundStart;

    /// Merkle roots of finished rounds, for swarms too large for one write a peer.
    mapping(uint256 round => bytes32 root) public anchors;

    event StageAdvanced(uint256 indexed roundNumber, uint256 newStage);
    event RoundAdvanced(uint256 indexed newRoundNumber);
    event RoundAnchored(uint256 indexed roundNumber, bytes32 root, uint256 count, string uri);

    constructor(address owner, Config memory config) {
        if (owner == address(0) || config.roundDuration == 0 || config.minRoundTime > config.roundDuration) revert InvalidConfig();
        roundDuration = config.roundDuration;
        minRoundTime = config.minRoundTime;
        _roundStart = uint64(block.timestamp);
        _setRoleAdmin(OWNER_ROLE, OWNER_ROLE);
        _setRoleAdmin(STAGE_MANAGER_ROLE, OWNER_ROLE);
        _setRoleAdmin(BOOTNODE_MANAGER_ROLE, OWNER_ROLE);
        _grantRole(OWNER_ROLE, owner);
        _grantRole(STAGE_MANAGER_ROLE, owner);
        _grantRole(BOOTNODE_MANAGER_ROLE, owner);
    }

    function currentRound() public view returns (uint256) {
        return _round;
    }

    /// @notice Always 0: exchanges inside a round are the swarm's own affair.
    function currentStage() external pure returns (uint256) {
        return 0;
    }

    function stageCount() external pure returns (uint256) {
        return 1;
    }

    /// @notice Unix time from which anyone may advance the round.
    function deadline() public view returns (uint256) {
        return uint256(_roundStart) + roundDuration;
    }

    /// @notice Ends the round: a stage manager from `minRoundTime` on, anyone from `deadline()` on.
    function updateStageAndRound() external returns (uint256, uint256) {
        if (block.timestamp < deadline()) {
            _checkRole(STAGE_MANAGER_ROLE);
            if (block.timestamp < uint256(_roundStart) + minRoundTime) revert RoundNotOver();
        }
        uint64 next = _round + 1;
        (_round, _roundStart) = (next, uint64(block.timestamp));
        emit RoundAdvanced(next);
        emit StageAdvanced(next, 0);
        return (next, 0);
    }

    /// @notice Keeps the Merkle root of a finished round's reports, once.
    function anchorRound(uint256 round, bytes32 root, uint32 count, string calldata uri) external onlyRole(STAGE_MANAGER_ROLE) {
        if (round >= _round) revert InvalidRoundNumber();
        if (anchors[round] != 0 || root == 0) revert RoundAlreadyAnchored();
        anchors[round] = root;
        emit RoundAnchored(round, root, count, uri);
    }

    function pause() external onlyRole(OWNER_ROLE) {
        _pause();
    }

    function unpause() external onlyRole(OWNER_ROLE) {
        _unpause();
    }
}
