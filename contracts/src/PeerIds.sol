// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Base58} from "@openzeppelin/contracts/utils/Base58.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {RSA} from "@openzeppelin/contracts/utils/cryptography/RSA.sol";

/// @title libp2p peer ids, from the keys that they stand for
/// @notice A peer id is the base58 of a multihash of the public key's protobuf. It is a function of (kind, point), 33 bytes, so that a proven
/// id is kept in one slot and spelt out only when somebody reads it.
/// Source: https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
library PeerIds {
    /// An id that was only claimed.
    uint8 internal constant CLAIMED = 0;
    /// The point is the SHA-256 of the key's protobuf.
    uint8 internal constant RSA_2048 = 1;
    /// The point is x of a secp256k1 key; the kind is the first byte of its compressed form.
    uint8 internal constant SECP256K1_EVEN = 2;
    uint8 internal constant SECP256K1_ODD = 3;

    /// Longest peer id that is accepted; those of the keys above have 46 and 53 characters.
    uint256 internal constant MAX_LENGTH = 64;

    bytes private constant RSA_HEAD = hex"080012a60230820122300d06092a864886f70d01010105000382010f003082010a0282010100";
    bytes private constant RSA_TAIL = hex"0203010001";

    /// @notice Which key this is.
    /// @return kind CLAIMED when it is none that can be proven
    function parse(bytes calldata key) internal pure returns (uint8 kind, bytes32 point) {
        if (key.length == 64) {
            return (uint8(key[63]) & 1 == 0 ? SECP256K1_EVEN : SECP256K1_ODD, bytes32(key));
        }
        // The modulus of a 2048-bit key has its first bit set; else there would be a shorter spelling of it, with another id.
        if (key.length == 256 && uint8(key[0]) >= 0x80) {
            return (RSA_2048, sha256(abi.encodePacked(RSA_HEAD, key, RSA_TAIL)));
        }
        return (CLAIMED, 0);
    }

    /// @notice Whether the holder of the key signed the digest. An RSA key signs the digest's 32 bytes as a message, as libp2p's do.
    function signed(uint8 kind, bytes calldata key, bytes32 digest, bytes calldata signature) internal view returns (bool) {
        if (kind == RSA_2048) return RSA.pkcs1Sha256(abi.encodePacked(digest), signature, hex"010001", key);
        // slither-disable-next-line unused-return
        (address recovered, ECDSA.RecoverError problem,) = ECDSA.tryRecoverCalldata(digest, signature);
        return problem == ECDSA.RecoverError.NoError && recovered == address(uint160(uint256(keccak256(key))));
    }

    /// @notice The peer id in letters: 16Uiu2HA… for secp256k1, Qm… for RSA.
    function spell(uint8 kind, bytes32 point) internal pure returns (string memory) {
        if (kind == RSA_2048) return Base58.encode(abi.encodePacked(hex"1220", point));
        return Base58.encode(abi.encodePacked(hex"002508021221", kind, point));
    }
}
