// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {PeerIds} from "./PeerIds.sol";
import {Peers} from "./Peers.sol";
import "./Types.sol";

/// @title What the peers report of each round
/// @notice One report a peer and round: its own mean reward, bounded, and votes for at most 8 others. A bit for each round says that it was
/// reported, so that nothing counts twice, the order does not matter, and no nonce is needed. A sealed swarm commits by the end of the round
/// and opens in one of the next ones: nobody can copy.
/// Invariant: what was rejected changed nothing; no vote goes to the voter's own owner or to an id that nobody registered.
abstract contract Reports is Peers {
    uint256 public constant MAX_VOTES = 8;

    bytes32 private constant REPORT = keccak256("Report(string peerId,uint256 round,uint256 stage,int256 reward,bytes32 winners)");
    bytes32 private constant COMMIT = keccak256("Commit(string peerId,uint256 round,bytes32 seal)");

    bytes32 private constant NO_WINNERS = keccak256(abi.encode(uint256(32), uint256(0)));

    uint96 public immutable maxReward;

    event RewardSubmitted(address indexed account, uint256 indexed roundNumber, uint256 indexed stageNumber, int256 reward, string peerId);
    event WinnerSubmitted(address indexed account, string peerId, uint256 indexed roundNumber, string[] winners);
    event ReportCommitted(string peerId, uint256 indexed roundNumber, bytes32 seal);

    constructor(Config memory config) {
        if (config.maxReward == 0 || config.maxReward >= 1 << 63) revert InvalidConfig();
        maxReward = config.maxReward;
    }

    /// @notice Takes the seals of reports of the current round and of the next few; anyone may carry them.
    function commitReports(SealedReport[] calldata commits) external whenNotPaused returns (bytes4[] memory reasons) {
        reasons = new bytes4[](commits.length);
        uint256 round = currentRound();
        for (uint256 i = 0; i < commits.length; i++) {
            reasons[i] = _commit(commits[i], round);
            if (reasons[i] != 0) emit EntryRejected(i, reasons[i]);
        }
    }

    /// @notice Takes reports; anyone may carry them, in any order. Of rounds from the peer's registration on, and of the last 256. In a sealed
    /// swarm, of the last 8 rounds that are over, and as committed.
    function submitReports(Report[] calldata reports) external whenNotPaused returns (bytes4[] memory reasons) {
        reasons = new bytes4[](reports.length);
        uint256 round = currentRound();
        for (uint256 i = 0; i < reports.length; i++) {
            reasons[i] = _report(reports[i], round);
            if (reasons[i] != 0) emit EntryRejected(i, reasons[i]);
        }
    }

    /// @notice A reward, from the peer's owner (0.4.2).
    function submitReward(uint256 roundNumber, uint256 stageNumber, int256 reward, string calldata peerId) external whenNotPaused {
        if (sealedReports) revert SealRequired();
        if (stageNumber != 0) revert InvalidStageNumber();
        (Peer storage p, bytes32 id) = _ownPeer(peerId, roundNumber);
        if (_has(_reported[id], roundNumber)) revert RewardAlreadySubmitted();
        _reward(p, id, peerId, roundNumber, reward);
    }

    /// @notice Votes, from the peer's owner (0.4.2). An empty vote is no vote.
    function submitWinners(uint256 roundNumber, string[] calldata winners, string calldata peerId) external whenNotPaused {
        if (sealedReports) revert SealRequired();
        (, bytes32 id) = _ownPeer(peerId, roundNumber);
        if (_has(_voted[id], roundNumber)) revert WinnerAlreadyVoted();
        (bytes32[] memory ids, bool distinct) = _distinct(winners);
        if (!distinct) revert InvalidVote();
        if (ids.length != 0) _vote(id, peerId, roundNumber, winners, ids);
    }

    function getTotalRewards(string[] calldata peerIds) external view returns (int256[] memory totals) {
        totals = new int256[](peerIds.length);
        for (uint256 i = 0; i < peerIds.length; i++) {
            totals[i] = _peers[keccak256(bytes(peerIds[i]))].totalReward;
        }
    }

    function getTotalWins(string calldata peerId) external view returns (uint256) {
        return _peers[keccak256(bytes(peerId))].wins;
    }

    function _ownPeer(string calldata peerId, uint256 round) private view returns (Peer storage p, bytes32 id) {
        if (!_inTime(round, currentRound())) revert InvalidRoundNumber();
        id = keccak256(bytes(peerId));
        p = _peers[id];
        if (p.owner != msg.sender) revert InvalidVoterPeerId();
        if (round < p.firstRound) revert InvalidRoundNumber();
    }

    function _inTime(uint256 round, uint256 current) private pure returns (bool) {
        return round <= current && current - round < REPORT_WINDOW;
    }

    function _has(mapping(uint256 word => uint256) storage bits, uint256 round) private view returns (bool) {
        return bits[round >> 8] & _bit(round) != 0;
    }

    function _bit(uint256 round) private pure returns (uint256) {
        return 1 << (255 - (round & 255));
    }

    function _commit(SealedReport calldata c, uint256 current) private returns (bytes4) {
        if (!sealedReports) return NotSealed.selector;
        if (bytes(c.peerId).length > PeerIds.MAX_LENGTH) return InvalidPeerId.selector;
        if (c.round < current || c.round - current >= SEALS - OPENING_WINDOW) return InvalidRoundNumber.selector;
        bytes32 id = keccak256(bytes(c.peerId));
        address signer = _peers[id].signer;
        if (signer == address(0)) return UnknownPeer.selector;
        bytes32 sealed_ = _sealOf(c.seal, c.round);
        if (uint32(uint256(_seals[id][c.round % SEALS])) == uint32(uint256(sealed_))) return AlreadySealed.selector;
        bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(COMMIT, id, c.round, c.seal)));
        if (!_signedBy(signer, digest, c.signature)) return InvalidSignature.selector;
        _seals[id][c.round % SEALS] = sealed_;
        emit ReportCommitted(c.peerId, c.round, c.seal);
        return 0;
    }

    /// A seal as it is kept: its first 28 bytes, and one more than its round.
    function _sealOf(bytes32 seal, uint256 round) private pure returns (bytes32) {
        return bytes32(bytes28(seal)) | bytes32(round + 1);
    }

    function _report(Report calldata r, uint256 current) private returns (bytes4) {
        string calldata peerId = r.peerId;
        if (bytes(peerId).length > PeerIds.MAX_LENGTH) return InvalidPeerId.selector;
        bytes32 id = keccak256(bytes(peerId));
        Peer storage p = _peers[id];
        (bytes4 reason, bytes32[] memory ids) = _checked(r, p, id, current);
        if (reason != 0) return reason;
        _reward(p, id, peerId, r.round, r.reward);
        if (ids.length != 0) _vote(id, peerId, r.round, r.winners, ids);
        return 0;
    }

    /// Why a report is not taken, or 0 and the hashes of its winners.
    function _checked(Report calldata r, Peer storage p, bytes32 id, uint256 current) private view returns (bytes4, bytes32[] memory ids) {
        uint256 round = r.round;
        if (!_inTime(round, current)) return (InvalidRoundNumber.selector, ids);
        if (sealedReports && (current == round || current - round > OPENING_WINDOW)) return (InvalidRoundNumber.selector, ids);
        address signer = p.signer;
        if (signer == address(0)) return (UnknownPeer.selector, ids);
        if (round < p.firstRound) return (InvalidRoundNumber.selector, ids);
        if (_has(_reported[id], round)) return (RewardAlreadySubmitted.selector, ids);
        bool distinct;
        (ids, distinct) = _distinct(r.winners);
        if (!distinct) return (InvalidVote.selector, ids);
        bytes32 winners = ids.length == 0 ? NO_WINNERS : keccak256(abi.encode(r.winners));
        bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(REPORT, id, round, uint256(0), r.reward, winners)));
        if (!_signedBy(signer, digest, r.signature)) return (InvalidSignature.selector, ids);
        if (sealedReports && !_opens(r, id, winners)) return (SealMismatch.selector, ids);
        if (ids.length != 0 && _has(_voted[id], round)) return (WinnerAlreadyVoted.selector, ids);
        return (0, ids);
    }

    /// Whether the report is the one that was committed.
    function _opens(Report calldata r, bytes32 id, bytes32 winners) private view returns (bool) {
        bytes32 seal = keccak256(abi.encode(r.peerId, r.round, r.reward, winners, r.salt));
        return _seals[id][r.round % SEALS] == _sealOf(seal, r.round);
    }

    function _signedBy(address signer, bytes32 digest, bytes calldata signature) private pure returns (bool) {
        // slither-disable-next-line unused-return
        (address recovered, ECDSA.RecoverError problem,) = ECDSA.tryRecoverCalldata(digest, signature);
        return problem == ECDSA.RecoverError.NoError && recovered == signer;
    }

    function _reward(Peer storage p, bytes32 id, string calldata peerId, uint256 round, int256 reward) private {
        int256 bound = int256(uint256(maxReward));
        if (reward > bound) reward = bound;
        else if (reward < -bound) reward = -bound;
        p.totalReward += int96(reward);
        _reported[id][round >> 8] |= _bit(round);
        emit RewardSubmitted(p.owner, round, 0, reward, peerId);
    }

    /// Whether these are at most 8 different ids, and their hashes.
    function _distinct(string[] calldata winners) private pure returns (bytes32[] memory ids, bool) {
        uint256 count = winners.length;
        if (count > MAX_VOTES) return (ids, false);
        ids = new bytes32[](count);
        for (uint256 i = 0; i < count; i++) {
            string calldata winner = winners[i];
            if (bytes(winner).length > PeerIds.MAX_LENGTH) return (ids, false);
            bytes32 id = keccak256(bytes(winner));
            for (uint256 j = 0; j < i; j++) {
                if (ids[j] == id) return (ids, false);
            }
            ids[i] = id;
        }
        return (ids, true);
    }

    /// Counts the votes for registered peers of other owners. The others are left out of the event too: that client of 0.4.2's votes for
    /// itself when it has nothing to say, and a winner's own registration may be on its way.
    function _vote(bytes32 id, string calldata peerId, uint256 round, string[] calldata winners, bytes32[] memory ids) private {
        address owner = _peers[id].owner;
        uint256 count = 0;
        for (uint256 i = 0; i < ids.length; i++) {
            Peer storage winner = _peers[ids[i]];
            address other = winner.owner;
            if (other == address(0) || other == owner) {
                ids[i] = 0;
            } else {
                winner.wins++;
                count++;
            }
        }
        _voted[id][round >> 8] |= _bit(round);
        if (count == ids.length) {
            emit WinnerSubmitted(owner, peerId, round, winners);
        } else if (count != 0) {
            string[] memory counted = new string[](count);
            for (uint256 i = ids.length; i > 0; i--) {
                if (ids[i - 1] != 0) counted[--count] = winners[i - 1];
            }
            emit WinnerSubmitted(owner, peerId, round, counted);
        }
    }
}
