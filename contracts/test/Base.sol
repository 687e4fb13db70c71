// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {PeerIds} from "../src/PeerIds.sol";
import {SwarmCoordinator} from "../src/SwarmCoordinator.sol";
import "../src/Types.sol";

struct Wallet {
    address addr;
    uint256 publicKeyX;
    uint256 publicKeyY;
    uint256 privateKey;
}

/// The few of forge's cheat codes that are used here.
interface Vm {
    function createWallet(uint256 privateKey) external returns (Wallet memory);
    function sign(uint256 privateKey, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function prank(address sender) external;
    function warp(uint256 timestamp) external;
    function etch(address target, bytes calldata code) external;
    function expectRevert(bytes4 reason) external;
    function expectRevert() external;
    function expectEmit(bool, bool, bool, bool) external;
    function readFile(string calldata path) external view returns (string memory);
    function parseJsonBytes(string calldata json, string calldata key) external pure returns (bytes memory);
    function chainId(uint256 id) external;
}

/// Peers with keys, what they sign, and a swarm for them.
abstract contract Base {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
    uint256 internal constant START = 1_700_000_000;
    address internal constant STRANGER = address(0xBEEF);

    SwarmCoordinator internal swarm;
    mapping(uint256 secret => Wallet) private _wallets;

    function config() internal pure returns (Config memory) {
        return Config({roundDuration: 600, minRoundTime: 10, maxReward: 1_000, sealedReports: false, provenOnly: false});
    }

    function start(Config memory c) internal {
        vm.warp(START);
        swarm = new SwarmCoordinator(address(this), c);
    }

    function wallet(uint256 secret) internal returns (Wallet memory) {
        if (_wallets[secret].addr == address(0)) _wallets[secret] = vm.createWallet(secret);
        return _wallets[secret];
    }

    function owner(uint256 secret) internal pure returns (address) {
        return address(uint160(0xA000 + secret));
    }

    function session(uint256 secret) internal returns (address) {
        return wallet(secret + 0x5E55).addr;
    }

    function id(uint256 secret) internal returns (string memory) {
        Wallet memory w = wallet(secret);
        return PeerIds.spell(w.publicKeyY & 1 == 0 ? 2 : 3, bytes32(w.publicKeyX));
    }

    function digest(bytes32 structHash) internal view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", swarm.domainSeparator(), structHash));
    }

    function signed(uint256 secret, bytes32 structHash) internal view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(secret, digest(structHash));
        return abi.encodePacked(r, s, v);
    }

    function registration(uint256 secret, address owner_, address signer, uint256 deadline) internal returns (Registration memory) {
        Wallet memory w = wallet(secret);
        bytes32 hash =
            keccak256(abi.encode(keccak256("RegisterPeer(address owner,address signer,uint256 deadline)"), owner_, signer, deadline));
        return Registration(owner_, signer, deadline, abi.encodePacked(w.publicKeyX, w.publicKeyY), signed(secret, hash));
    }

    function registration(uint256 secret) internal returns (Registration memory) {
        return registration(secret, owner(secret), session(secret), START + 1 days);
    }

    function report(uint256 secret, uint256 round, int256 reward, string[] memory winners) internal returns (Report memory r) {
        r = Report(id(secret), round, reward, winners, bytes32(secret), "");
        bytes32 hash = keccak256(
            abi.encode(
                keccak256("Report(string peerId,uint256 round,uint256 stage,int256 reward,bytes32 winners)"),
                keccak256(bytes(r.peerId)),
                round,
                uint256(0),
                reward,
                keccak256(abi.encode(winners))
            )
        );
        r.signature = signed(secret + 0x5E55, hash);
    }

    function report(uint256 secret, uint256 round, int256 reward) internal returns (Report memory) {
        return report(secret, round, reward, new string[](0));
    }

    function commit(Report memory r, uint256 secret) internal view returns (SealedReport memory) {
        bytes32 winners = keccak256(abi.encode(r.winners));
        bytes32 seal = keccak256(abi.encode(r.peerId, r.round, r.reward, winners, r.salt));
        bytes32 hash =
            keccak256(abi.encode(keccak256("Commit(string peerId,uint256 round,bytes32 seal)"), keccak256(bytes(r.peerId)), r.round, seal));
        return SealedReport(r.peerId, r.round, seal, signed(secret + 0x5E55, hash));
    }

    function register(uint256 secret) internal {
        accepted(swarm.registerPeers(one(registration(secret))));
    }

    function one(Registration memory r) internal pure returns (Registration[] memory list) {
        list = new Registration[](1);
        list[0] = r;
    }

    function one(Report memory r) internal pure returns (Report[] memory list) {
        list = new Report[](1);
        list[0] = r;
    }

    function one(SealedReport memory r) internal pure returns (SealedReport[] memory list) {
        list = new SealedReport[](1);
        list[0] = r;
    }

    function one(string memory s) internal pure returns (string[] memory list) {
        list = new string[](1);
        list[0] = s;
    }

    function accepted(bytes4[] memory reasons) internal pure {
        for (uint256 i = 0; i < reasons.length; i++) {
            same(reasons[i], bytes4(0));
        }
    }

    function same(bytes4 a, bytes4 b) internal pure {
        require(a == b, "another reason");
    }

    function same(uint256 a, uint256 b) internal pure {
        require(a == b, "another number");
    }

    function same(int256 a, int256 b) internal pure {
        require(a == b, "another sum");
    }

    function same(address a, address b) internal pure {
        require(a == b, "another address");
    }

    function same(string memory a, string memory b) internal pure {
        require(keccak256(bytes(a)) == keccak256(bytes(b)), "another text");
    }

    function reward(uint256 secret) internal returns (int256) {
        return swarm.getTotalRewards(one(id(secret)))[0];
    }

    function wins(uint256 secret) internal returns (uint256) {
        return swarm.getTotalWins(id(secret));
    }

    function next() internal {
        vm.warp(block.timestamp + 600);
        swarm.updateStageAndRound();
    }
}
