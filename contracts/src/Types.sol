// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

// What is sent to the coordinator, what it answers, and every reason for which it rejects something.

/// @param roundDuration seconds after which anyone may advance the round
/// @param minRoundTime seconds before which not even a stage manager may
/// @param maxReward bound of one round's reward, on either side of zero; less than 2^63
/// @param sealedReports a report is committed in its round and opened in one of the next ones
/// @param provenOnly peer ids cannot be claimed without a proof
struct Config {
    uint32 roundDuration;
    uint32 minRoundTime;
    uint96 maxReward;
    bool sealedReports;
    bool provenOnly;
}

/// @param owner account that the peer belongs to
/// @param signer key that signs the peer's reports
/// @param deadline unix time until which this may be carried, 30 days away at most; a later one replaces an earlier one
/// @param key the libp2p public key: 64 bytes of secp256k1 (x, y), or 256 bytes of an RSA modulus (exponent 65537)
/// @param signature of RegisterPeer(owner, signer, deadline) by that key: 65 bytes (r, s, v), or 256 bytes of PKCS #1 v1.5 over the digest
struct Registration {
    address owner;
    address signer;
    uint256 deadline;
    bytes key;
    bytes signature;
}

/// @param seal keccak256(abi.encode(peerId, round, reward, keccak256(abi.encode(winners)), salt))
/// @param signature of Commit(peerId, round, seal) by the peer's signer
struct SealedReport {
    string peerId;
    uint256 round;
    bytes32 seal;
    bytes signature;
}

/// @param winners the peers voted for: 8 at most
/// @param salt what the seal was made with; ignored where reports are not sealed
/// @param signature of Report(peerId, round, stage 0, reward, keccak256(abi.encode(winners))) by the peer's signer
struct Report {
    string peerId;
    uint256 round;
    int256 reward;
    string[] winners;
    bytes32 salt;
    bytes signature;
}

/// What is known of a peer.
/// @param firstRound the first round that the peer may report
/// @param round the current round
/// @param reported bit i: the peer has reported round - i
/// @param voted bit i: the peer has voted in round - i
/// @param seals the seals that were committed last; the last four bytes are one more than the round of the seal. None in an open swarm
struct PeerInfo {
    address owner;
    address signer;
    uint256 deadline;
    bool proven;
    uint256 firstRound;
    uint256 round;
    uint256 reported;
    uint256 voted;
    int256 totalReward;
    uint256 totalWins;
    bytes32[] seals;
}

// Names that 0.4.2 has too.
error InvalidRoundNumber();
error InvalidStageNumber();
error WinnerAlreadyVoted();
error PeerIdAlreadyRegistered();
error InvalidVoterPeerId();
error RewardAlreadySubmitted();
error InvalidVote();

error InvalidConfig();
error InvalidPeerId();
error InvalidOwner();
error InvalidKey();
error InvalidSignature();
error RegistrationExpired();
error RegistrationTooLong();
error RegistrationSuperseded();
error ProofRequired();
error UnknownPeer();
error SealRequired();
error NotSealed();
error AlreadySealed();
error SealMismatch();
error RoundNotOver();
error RoundAlreadyAnchored();
error TooManyBootnodes();
error InvalidBootnode();
