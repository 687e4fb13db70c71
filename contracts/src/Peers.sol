// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

import {PeerIds} from "./PeerIds.sol";
import {Rounds} from "./Rounds.sol";
import "./Types.sol";

/// @title Who is in the swarm
/// @notice A peer proves its id with the libp2p key that the id is made of; anyone may carry the proof. An id that was merely claimed
/// (0.4.2's registerPeer) belongs to the first who asks, until its key speaks: then the claim and all that was scored under it are gone.
/// Invariant: a proven id never goes to anyone whom its key has not named.
abstract contract Peers is Rounds, EIP712 {
    // A report reads both of the first two slots and writes the second, and a word of `_reported`; a vote writes the third.
    struct Peer {
        address owner;
        uint40 deadline;
        uint32 firstRound;
        uint24 position;
        address signer;
        int96 totalReward;
        uint32 wins;
    }

    /// Rounds before its registration that a peer may report: the registration may have been on its way.
    uint256 public constant LATE_ROUNDS = 8;
    /// A deadline is no further away, so that a proof which was stolen ends.
    uint256 public constant MAX_DEADLINE = 30 days;
    /// Seals that are kept of a peer: of the rounds that may be opened, and of as many that are to come.
    uint256 internal constant SEALS = 16;

    bytes32 private constant REGISTER_PEER = keccak256("RegisterPeer(address owner,address signer,uint256 deadline)");

    bool public immutable provenOnly;

    mapping(bytes32 peerIdHash => Peer) internal _peers;
    /// A bit for each round, 256 to a word: the order in which reports come does not matter, and none is taken twice.
    mapping(bytes32 peerIdHash => mapping(uint256 word => uint256 bits)) internal _reported;
    mapping(bytes32 peerIdHash => mapping(uint256 word => uint256 bits)) internal _voted;
    mapping(bytes32 peerIdHash => mapping(uint256 slot => bytes32)) internal _seals;
    mapping(address owner => string[]) private _claims;
    mapping(address owner => mapping(uint8 kind => bytes32[])) private _proofs;

    event PeerRegistered(address indexed eoa, string peerId);
    event PeerProven(address indexed owner, address indexed signer, string peerId);
    /// An entry of a batch was left out; the others stand.
    event EntryRejected(uint256 indexed index, bytes4 reason);

    constructor(Config memory config) EIP712("SwarmCoordinator", "1") {
        provenOnly = config.provenOnly;
    }

    /// @notice Registers peers by proof. A later deadline replaces an earlier one: new session key, new owner, or both.
    /// @return reasons the selector of the error for which each entry was rejected; 0 where it was not
    function registerPeers(Registration[] calldata registrations) external whenNotPaused returns (bytes4[] memory reasons) {
        reasons = new bytes4[](registrations.length);
        uint32 first = _firstRound();
        for (uint256 i = 0; i < registrations.length; i++) {
            reasons[i] = _register(registrations[i], first);
            if (reasons[i] != 0) emit EntryRejected(i, reasons[i]);
        }
    }

    /// @notice Claims a peer id for the sender, without proof (0.4.2).
    function registerPeer(string calldata peerId) external whenNotPaused {
        if (provenOnly) revert ProofRequired();
        if (bytes(peerId).length == 0 || bytes(peerId).length > PeerIds.MAX_LENGTH) revert InvalidPeerId();
        Peer storage peer_ = _peers[keccak256(bytes(peerId))];
        if (peer_.owner != address(0)) revert PeerIdAlreadyRegistered();
        string[] storage claims = _claims[msg.sender];
        if (claims.length > type(uint24).max) revert InvalidOwner();
        (peer_.owner, peer_.position, peer_.firstRound) = (msg.sender, uint24(claims.length), _firstRound());
        claims.push(peerId);
        emit PeerRegistered(msg.sender, peerId);
    }

    /// @notice The peer ids of each account: those it claimed, then those it proved.
    function getPeerId(address[] calldata eoas) external view returns (string[][] memory peerIds) {
        peerIds = new string[][](eoas.length);
        for (uint256 i = 0; i < eoas.length; i++) {
            string[] storage claims = _claims[eoas[i]];
            uint256 count = claims.length;
            for (uint8 kind = PeerIds.RSA_2048; kind <= PeerIds.SECP256K1_ODD; kind++) {
                count += _proofs[eoas[i]][kind].length;
            }
            string[] memory found = new string[](count);
            count = 0;
            for (uint256 j = 0; j < claims.length; j++) {
                found[count++] = claims[j];
            }
            for (uint8 kind = PeerIds.RSA_2048; kind <= PeerIds.SECP256K1_ODD; kind++) {
                bytes32[] storage points = _proofs[eoas[i]][kind];
                for (uint256 j = 0; j < points.length; j++) {
                    found[count++] = PeerIds.spell(kind, points[j]);
                }
            }
            peerIds[i] = found;
        }
    }

    /// @notice The account of each peer id; zero where there is none.
    function getEoa(string[] calldata peerIds) external view returns (address[] memory eoas) {
        eoas = new address[](peerIds.length);
        for (uint256 i = 0; i < peerIds.length; i++) {
            eoas[i] = _peers[keccak256(bytes(peerIds[i]))].owner;
        }
    }

    /// @notice All that is known of a peer.
    function peer(string calldata peerId) external view returns (PeerInfo memory) {
        bytes32 id = keccak256(bytes(peerId));
        Peer storage p = _peers[id];
        bytes32[] memory seals = new bytes32[](sealedReports ? SEALS : 0);
        for (uint256 i = 0; i < seals.length; i++) {
            seals[i] = _seals[id][i];
        }
        return PeerInfo({
            owner: p.owner,
            signer: p.signer,
            deadline: p.deadline,
            proven: p.signer != address(0),
            firstRound: p.firstRound,
            round: currentRound(),
            reported: _recent(_reported[id]),
            voted: _recent(_voted[id]),
            totalReward: p.totalReward,
            totalWins: p.wins,
            seals: seals
        });
    }

    function domainSeparator() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    function _register(Registration calldata r, uint32 first) private returns (bytes4) {
        if (r.owner == address(0) || r.signer == address(0)) return InvalidOwner.selector;
        if (r.deadline < block.timestamp) return RegistrationExpired.selector;
        if (r.deadline > block.timestamp + MAX_DEADLINE) return RegistrationTooLong.selector;
        (uint8 kind, bytes32 point) = PeerIds.parse(r.key);
        if (kind == PeerIds.CLAIMED) return InvalidKey.selector;
        bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(REGISTER_PEER, r.owner, r.signer, r.deadline)));
        if (!PeerIds.signed(kind, r.key, digest, r.signature)) return InvalidSignature.selector;
        string memory peerId = PeerIds.spell(kind, point);
        bytes32 id = keccak256(bytes(peerId));
        Peer storage p = _peers[id];
        address previous = p.owner;
        if (p.signer != address(0)) {
            if (r.deadline <= p.deadline) return RegistrationSuperseded.selector;
            if (previous != r.owner) _unlist(previous, kind, p.position);
        } else if (previous != address(0)) {
            _unclaim(previous, p.position);
            _forget(id);
            previous = address(0);
        }
        p.signer = r.signer;
        if (previous == r.owner) {
            p.deadline = uint40(r.deadline);
        } else {
            bytes32[] storage points = _proofs[r.owner][kind];
            uint256 position = points.length;
            if (position > type(uint24).max) revert InvalidOwner();
            if (previous != address(0)) first = p.firstRound;
            (p.owner, p.deadline, p.firstRound, p.position) = (r.owner, uint40(r.deadline), first, uint24(position));
            points.push(point);
            emit PeerRegistered(r.owner, peerId);
        }
        emit PeerProven(r.owner, r.signer, peerId);
        return 0;
    }

    /// The first round that a peer which is registered now may report.
    function _firstRound() private view returns (uint32) {
        uint256 current = currentRound();
        return uint32(current > LATE_ROUNDS ? current - LATE_ROUNDS : 0);
    }

    /// The bits of the last 256 rounds, the current one lowest.
    function _recent(mapping(uint256 word => uint256) storage bits) private view returns (uint256 recent) {
        uint256 current = currentRound();
        uint256 word = current >> 8;
        uint256 last = current & 255;
        // In a word, a round's bit stands the higher the older it is, so that words follow each other.
        recent = bits[word] >> (255 - last);
        if (word > 0 && last < 255) recent |= bits[word - 1] << (last + 1);
    }

    /// Takes a claim away, with all that was reported under it and that the peer itself may still report.
    function _forget(bytes32 id) private {
        delete _peers[id];
        uint256 word = currentRound() >> 8;
        for (uint256 i = 0; i < 2 && i <= word; i++) {
            delete _reported[id][word - i];
            delete _voted[id][word - i];
        }
    }

    // Both take an entry out in constant time, by moving the last one into its place: nobody can make a hand-over dear by owning much.

    function _unlist(address owner, uint8 kind, uint24 position) private {
        bytes32[] storage points = _proofs[owner][kind];
        bytes32 last = points[points.length - 1];
        points[position] = last;
        _peers[keccak256(bytes(PeerIds.spell(kind, last)))].position = position;
        points.pop();
    }

    function _unclaim(address owner, uint24 position) private {
        string[] storage claims = _claims[owner];
        string memory last = claims[claims.length - 1];
        claims[position] = last;
        _peers[keccak256(bytes(last))].position = position;
        claims.pop();
    }
}
