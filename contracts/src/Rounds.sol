// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";

import {Config, InvalidConfig, InvalidRoundNumber, RoundAlreadyAnchored, RoundNotOver} from "./Types.sol";

/// @title The swarm's clock, and who may do what
/// @notice Rounds have one stage. A stage manager ends one round or several when the swarm is done with them; once a round has lasted
/// `roundDuration`, anyone may end it, so that no key can stall the swarm. A pause stops registrations, reports and the clock.
abstract contract Rounds is AccessControl, Pausable {
    bytes32 public constant OWNER_ROLE = keccak256("OWNER_ROLE");
    bytes32 public constant STAGE_MANAGER_ROLE = keccak256("STAGE_MANAGER_ROLE");
    bytes32 public constant BOOTNODE_MANAGER_ROLE = keccak256("BOOTNODE_MANAGER_ROLE");

    /// Rounds for which the reports of a peer are remembered, the current one among them; older ones are too late.
    uint256 public constant REPORT_WINDOW = 256;
    /// Rounds after a commit in which its report may be opened.
    uint256 public constant OPENING_WINDOW = 8;
    /// Most rounds that end in one step: half of the window, so that a report of the first one is not late yet.
    uint256 public constant MAX_STEP = 128;

    uint32 public immutable roundDuration;
    uint32 public immutable minRoundTime;
    bool public immutable sealedReports;

    uint64 private _round;
    uint64 private _roundStart;
    uint64 private _pausedAt;

    /// Merkle roots of finished rounds, for swarms too large for one write a peer.
    mapping(uint256 round => bytes32 root) public anchors;

    event StageAdvanced(uint256 indexed roundNumber, uint256 newStage);
    event RoundAdvanced(uint256 indexed newRoundNumber);
    event RoundAnchored(uint256 indexed roundNumber, bytes32 root, uint256 count, string uri);

    constructor(address owner, Config memory config) {
        if (owner == address(0) || config.roundDuration == 0 || config.minRoundTime > config.roundDuration) revert InvalidConfig();
        roundDuration = config.roundDuration;
        minRoundTime = config.minRoundTime;
        sealedReports = config.sealedReports;
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

    /// @notice Unix time from which anyone may advance the round. It moves on while the contract is paused.
    function deadline() public view returns (uint256) {
        return uint256(_roundStart) + roundDuration + (paused() ? block.timestamp - _pausedAt : 0);
    }

    /// @notice Ends the round: a stage manager from `minRoundTime` on, anyone from `deadline()` on.
    function updateStageAndRound() external returns (uint256, uint256) {
        return advanceTo(uint256(_round) + 1);
    }

    /// @notice Ends all rounds before `round`, so that a swarm may be faster than its chain. Anyone may end one round from `deadline()` on;
    /// a stage manager, from `minRoundTime` on, as many as leave a report of the first one in time: `MAX_STEP`, or `OPENING_WINDOW` where
    /// reports are sealed.
    function advanceTo(uint256 round) public whenNotPaused returns (uint256, uint256) {
        uint256 current = _round;
        if (round <= current || round - current > (sealedReports ? OPENING_WINDOW : MAX_STEP)) revert InvalidRoundNumber();
        bool over = block.timestamp >= deadline();
        if (!over || round - current > 1) _checkRole(STAGE_MANAGER_ROLE);
        if (!over && block.timestamp < uint256(_roundStart) + minRoundTime) revert RoundNotOver();
        (_round, _roundStart) = (uint64(round), uint64(block.timestamp));
        emit RoundAdvanced(round);
        emit StageAdvanced(round, 0);
        return (round, 0);
    }

    /// @notice Keeps the Merkle root of a finished round's reports, once.
    function anchorRound(uint256 round, bytes32 root, uint32 count, string calldata uri) external onlyRole(STAGE_MANAGER_ROLE) {
        if (round >= _round) revert InvalidRoundNumber();
        if (anchors[round] != 0 || root == 0) revert RoundAlreadyAnchored();
        anchors[round] = root;
        emit RoundAnchored(round, root, count, uri);
    }

    /// @notice Stops registrations, reports and the clock.
    function pause() external onlyRole(OWNER_ROLE) {
        _pause();
        _pausedAt = uint64(block.timestamp);
    }

    /// @notice Ends a pause. The round goes on as long as was left of it.
    function unpause() external onlyRole(OWNER_ROLE) {
        _unpause();
        _roundStart += uint64(block.timestamp) - _pausedAt;
    }
}
