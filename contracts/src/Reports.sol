// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {PeerIds} from "./PeerIds.sol";
import {Peers} from "./Peers.sol";
import "./Types.sol";

/// @title What the peers say of each round
/// @notice One report a peer and round: its own mean reward, bounded, and votes for at most 8 others. Rounds of a peer only grow, so that
/// nothing can be said twice and no nonce is needed. A sealed swarm commits in round r and opens in r + 1: nobody can copy.
/// Invariant: what was rejected changed nothing; no vote goes to the voter's own owner or to an id that nobody registered.
abstract contract Reports is Peers {
    uint256 public constant MAX_VOTES = 8;

    bytes32 private constant REPORT = keccak256("Report(string peerId,uint256 round,uint256 stage,int256 reward,bytes32 winners)");
    bytes32 private constant COMMIT = keccak256("Commit(string peerId,uint256 round,bytes32 seal)");

    uint96 public immutable maxReward;
    bool public immutable sealedReports;

    event RewardSubmitted(address indexed account, uint256 indexed roundNumber, uint256 indexed stageNumber, int256 reward, string peerId);
    event CumulativeRewardsUpdated(address indexed account, string peerId, int256 totalRewards);
    event WinnerSubmitted(address indexed account, string peerId, uint256 indexed roundNumber, string[] winners);
    event ReportCommitted(string peerId, uint256 indexed roundNumber, bytes32 seal);

    constructor(Config memory config) {
        if (config.maxReward == 0) revert InvalidConfig();
        maxReward = config.maxReward;
        sealedReports = config.sealedReports;
    }

    /// @notice Takes the seals of the current round's reports; anyone may carry them.
    function commitReports(SealedReport[] calldata commits) external whenNotPaused returns (bytes4[] memory reasons) {
        reasons = new bytes4[](commits.length);
        uint256 round = currentRound();
        for (uint256 i = 0; i < commits.length; i++) {
            reasons[i] = _commit(commits[i], round);
            if (reasons[i] != 0) emit EntryRejected(i, reasons[i]);
        }
    }

    /// @notice Takes reports; anyone may carry them. Open swarms: of any round up to the current one that the peer has not gone beyond.
    /// Sealed swarms: of the last round, and as committed.
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
        if (roundNumber > currentRound()) revert InvalidRoundNumber();
        if (stageNumber != 0) revert InvalidStageNumber();
        Peer storage p = _ownPeer(peerId);
        if (roundNumber < p.nextRound) revert RewardAlreadySubmitted();
        _reward(p, msg.sender, peerId, roundNumber, reward);
    }

    /// @notice Votes, from the peer's owner (0.4.2). An empty vote is no vote.
    function submitWinners(uint256 roundNumber, string[] calldata winners, string calldata peerId) external whenNotPaused {
        if (sealedReports) revert SealRequired();
        if (roundNumber > currentRound()) revert InvalidRoundNumber();
        Peer storage p = _ownPeer(peerId);
        if (roundNumber < p.nextVote) revert WinnerAlreadyVoted();
        (bytes32[] memory ids, bool distinct) = _distinct(winners);
        if (!distinct) revert InvalidVote();
        if (ids.length != 0) _vote(p, msg.sender, peerId, roundNumber, winners, ids);
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

    function _ownPeer(string calldata peerId) private view returns (Peer storage p) {
        p = _peers[keccak256(bytes(peerId))];
        if (p.owner != msg.sender) revert InvalidVoterPeerId();
    }

    function _commit(SealedReport calldata c, uint256 current) private returns (bytes4) {
        if (!sealedReports) return NotSealed.selector;
        if (bytes(c.peerId).length > PeerIds.MAX_LENGTH) return InvalidPeerId.selector;
        if (c.round != current) return InvalidRoundNumber.selector;
        bytes32 id = keccak256(bytes(c.peerId));
        Peer storage p = _peers[id];
        address signer = p.signer;
        if (signer == address(0)) return UnknownPeer.selector;
        if (c.round < p.sealedRound) return AlreadySealed.selector;
        bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(COMMIT, id, c.round, c.seal)));
        if (!_signedBy(signer, digest, c.signature)) return InvalidSignature.selector;
        p.sealedRound = uint32(c.round + 1);
        p.seal = c.seal;
        emit ReportCommitted(c.peerId, c.round, c.seal);
        return 0;
    }

    function _report(Report calldata r, uint256 current) private returns (bytes4) {
        (bytes4 reason, bytes32[] memory ids) = _checked(r, current);
        if (reason != 0) return reason;
        Peer storage p = _peers[keccak256(bytes(r.peerId))];
        address owner = p.owner;
        _reward(p, owner, r.peerId, r.round, r.reward);
        if (ids.length != 0) _vote(p, owner, r.peerId, r.round, r.winners, ids);
        return 0;
    }

    /// Why a report is not taken, or 0 and the hashes of its winners.
    function _checked(Report calldata r, uint256 current) private view returns (bytes4, bytes32[] memory ids) {
        if (bytes(r.peerId).length > PeerIds.MAX_LENGTH) return (InvalidPeerId.selector, ids);
        if (r.round > current || (sealedReports && current - r.round != 1)) return (InvalidRoundNumber.selector, ids);
        bytes32 id = keccak256(bytes(r.peerId));
        Peer storage p = _peers[id];
        if (p.signer == address(0)) return (UnknownPeer.selector, ids);
        if (r.round < p.nextRound) return (RewardAlreadySubmitted.selector, ids);
        bool distinct;
        (ids, distinct) = _distinct(r.winners);
        if (!distinct) return (InvalidVote.selector, ids);
        bytes32 winners = keccak256(abi.encode(r.winners));
        bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(REPORT, id, r.round, uint256(0), r.reward, winners)));
        if (!_signedBy(p.signer, digest, r.signature)) return (InvalidSignature.selector, ids);
        if (sealedReports) {
            if (p.sealedRound != r.round + 1) return (SealMismatch.selector, ids);
            if (p.seal != keccak256(abi.encode(r.peerId, r.round, r.reward, winners, r.salt))) return (SealMismatch.selector, ids);
        }
        if (ids.length != 0 && r.round < p.nextVote) return (WinnerAlreadyVoted.selector, ids);
        return (0, ids);
    }

    function _signedBy(address signer, bytes32 digest, bytes calldata signature) private pure returns (bool) {
        // slither-disable-next-line unused-return
        (address recovered, ECDSA.RecoverError problem,) = ECDSA.tryRecoverCalldata(digest, signature);
        return problem == ECDSA.RecoverError.NoError && recovered == signer;
    }

    function _reward(Peer storage p, address owner, string calldata peerId, uint256 round, int256 reward) private {
        int256 bound = int256(uint256(maxReward));
        if (reward > bound) reward = bound;
        else if (reward < -bound) reward = -bound;
        int128 total = p.totalReward + int128(reward);
        (p.totalReward, p.nextRound) = (total, uint32(round + 1));
        emit RewardSubmitted(owner, round, 0, reward, peerId);
        emit CumulativeRewardsUpdated(owner, peerId, total);
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
    function _vote(Peer storage p, address owner, string calldata peerId, uint256 round, string[] calldata winners, bytes32[] memory ids)
        private
    {
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
        p.nextVote = uint32(round + 1);
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
