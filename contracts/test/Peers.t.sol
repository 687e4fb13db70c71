// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Base} from "./Base.sol";
import {SwarmCoordinator} from "../src/SwarmCoordinator.sol";
import "../src/Types.sol";

contract PeersTest is Base {
    // A key, and its signature of RegisterPeer(0xaa, 0xbb, START + 1 day) for chain 31337 and the contract at RSA_HOME.
    address private constant RSA_HOME = address(0x5Aa2FD);
    string private constant RSA_ID = "QmbJDmTvfTiZbxm3sjgJ7F5KRszck9ewRDRPJNvGjYMkrG";
    bytes private constant RSA_KEY =
        hex"d05d79f0821f003db611342dd6eaa529e20d66f83be29803e1288d6aa8c73d70abc037255a1a3db3b2e215caa6974a1567e507c2c7a8fd4ac4163db7447c75b12ceb323ab10d804012f7b6f98535db1dc637191271f2a05b3212f99e1171d8ade9e4713b3fb137278df868cc316c14dd44e61cf4058d1837f43ab2b37290cd727ec1793ec97f94b1ff01df1a83379b0ca78db5c50fbfcecd1dba306550267baa58451da80c2f666399aad848f93d1163e0e023b8811515a03ee072e66f3b03423d7a21eba45f991c16ede79ee13339822f694f4bbe7e48737bb452902d358fb30134d691302bb6006ca6e1bc1ac23a044f0fbadf61c0887981649b248108ca3b";
    bytes private constant RSA_SIGNATURE =
        hex"8fd1a3395bff521c71e149ff4f59d61dde5074f590277b3f18b0f47c2c127d9d39518cac81167e1c0bb97e86ce45704147e77b3f2dc7d5ca6d61b3ff4be91c5bf8e6aec6ac441241aa4f5d04a4a6892edffad2faec2057dcbbdc9a90befe135dddda735a94170a5292a47fd39307a0ae9555866ac13dc9f501c017fb37d3b172d70264763732f7c85f2838f9a0b7220c7fc4971574c0dcf7ad893260075b0eea73a0b3afd20c9da4a344607050d2b02f215b40bb29ee9a65f829ad1a166c01e5313de050cfe181104dc8f038735108ddb49d8da2ab2aef1b3d6e2a3ad9a4975c5d4a82cd34d688554901b6a780db5da34c29642ad7640a9c899bb2f2f2b19380";

    function setUp() public {
        start(config());
    }

    function test_a_proof_registers_the_peer_whoever_carries_it() public {
        vm.prank(STRANGER);
        accepted(swarm.registerPeers(one(registration(1))));
        PeerInfo memory p = swarm.peer(id(1));
        same(p.owner, owner(1));
        same(p.signer, session(1));
        same(p.deadline, START + 1 days);
        require(p.proven);
        same(swarm.getEoa(one(id(1)))[0], owner(1));
        address[] memory owners = new address[](2);
        (owners[0], owners[1]) = (owner(1), owner(2));
        string[][] memory ids = swarm.getPeerId(owners);
        same(ids[0].length, 1);
        same(ids[0][0], id(1));
        same(ids[1].length, 0);
    }

    function testFuzz_every_key_gives_a_libp2p_id_and_registers(uint128 seed) public {
        uint256 secret = uint256(seed) + 1;
        register(secret);
        bytes memory letters = bytes(id(secret));
        same(letters.length, 53);
        require(letters[0] == "1" && letters[1] == "6" && letters[2] == "U" && letters[3] == "i" && letters[4] == "u");
        same(swarm.getEoa(one(id(secret)))[0], owner(secret));
    }

    function test_an_rsa_key_proves_its_id() public {
        vm.etch(RSA_HOME, address(swarm).code);
        swarm = SwarmCoordinator(RSA_HOME);
        Registration memory r = Registration(address(0xaa), address(0xbb), START + 1 days, RSA_KEY, RSA_SIGNATURE);
        accepted(swarm.registerPeers(one(r)));
        same(swarm.peer(RSA_ID).owner, address(0xaa));
        address[] memory owners = new address[](1);
        owners[0] = address(0xaa);
        same(swarm.getPeerId(owners)[0][0], RSA_ID);
        r.signature[7] ^= 0x01;
        r.deadline++;
        same(swarm.registerPeers(one(r))[0], InvalidSignature.selector);
        r.key[0] = 0x7f;
        same(swarm.registerPeers(one(r))[0], InvalidKey.selector);
    }

    function test_bad_registrations_are_named_and_their_neighbours_stand() public {
        Registration[] memory batch = new Registration[](10);
        batch[0] = registration(10);
        batch[1] = registration(1, address(0), session(1), START + 1);
        batch[2] = registration(1, owner(1), address(0), START + 1);
        batch[3] = registration(1, owner(1), session(1), START - 1);
        batch[4] = registration(1, owner(1), session(1), START + 30 days + 1);
        batch[5] = registration(1);
        batch[5].key = hex"00";
        batch[6] = registration(1);
        batch[6].owner = STRANGER;
        batch[7] = registration(1);
        batch[7].signature = hex"1234";
        batch[8] = registration(10);
        batch[9] = registration(11);
        bytes4[] memory reasons = swarm.registerPeers(batch);
        same(reasons[0], bytes4(0));
        same(reasons[1], InvalidOwner.selector);
        same(reasons[2], InvalidOwner.selector);
        same(reasons[3], RegistrationExpired.selector);
        same(reasons[4], RegistrationTooLong.selector);
        same(reasons[5], InvalidKey.selector);
        same(reasons[6], InvalidSignature.selector);
        same(reasons[7], InvalidSignature.selector);
        same(reasons[8], RegistrationSuperseded.selector);
        same(reasons[9], bytes4(0));
        same(swarm.peer(id(1)).owner, address(0));
        require(swarm.peer(id(10)).proven && swarm.peer(id(11)).proven);
    }

    function testFuzz_a_forged_proof_never_registers(uint256 flip, address thief) public {
        Registration memory r = registration(1);
        if (thief != r.owner && thief != address(0)) {
            r.owner = thief;
            same(swarm.registerPeers(one(r))[0], InvalidSignature.selector);
            r = registration(1);
        }
        r.signature[flip % 65] ^= bytes1(uint8(1 << (flip % 8)));
        require(swarm.registerPeers(one(r))[0] != 0);
        require(!swarm.peer(id(1)).proven);
    }

    function test_a_proof_for_another_chain_or_contract_is_refused() public {
        Registration memory r = registration(1);
        SwarmCoordinator other = new SwarmCoordinator(address(this), config());
        same(other.registerPeers(one(r))[0], InvalidSignature.selector);
        vm.chainId(1);
        same(swarm.registerPeers(one(r))[0], InvalidSignature.selector);
        vm.chainId(31337);
        same(swarm.registerPeers(one(r))[0], bytes4(0));
    }

    function test_a_later_deadline_rotates_the_signer_and_hands_the_peer_over() public {
        register(1);
        accepted(swarm.submitReports(one(report(1, 0, 7))));
        accepted(swarm.registerPeers(one(registration(1, owner(1), owner(9), START + 2 days))));
        same(swarm.peer(id(1)).signer, owner(9));
        same(reward(1), 7);
        same(swarm.registerPeers(one(registration(1)))[0], RegistrationSuperseded.selector);
        accepted(swarm.registerPeers(one(registration(1, owner(2), session(1), START + 3 days))));
        same(swarm.getEoa(one(id(1)))[0], owner(2));
        address[] memory owners = new address[](2);
        (owners[0], owners[1]) = (owner(1), owner(2));
        string[][] memory ids = swarm.getPeerId(owners);
        same(ids[0].length, 0);
        same(ids[1][0], id(1));
        same(reward(1), 7);
    }

    function test_a_deadline_is_thirty_days_away_at_most() public {
        same(swarm.registerPeers(one(registration(1, owner(1), session(1), type(uint64).max)))[0], RegistrationTooLong.selector);
        same(swarm.registerPeers(one(registration(1, owner(1), session(1), type(uint256).max)))[0], RegistrationTooLong.selector);
        accepted(swarm.registerPeers(one(registration(1, owner(9), session(9), START + 30 days))));
        vm.warp(START + 1);
        accepted(swarm.registerPeers(one(registration(1, owner(1), session(1), START + 30 days + 1))));
        same(swarm.peer(id(1)).owner, owner(1));
    }

    function test_lists_of_an_owner_stay_right_when_peers_leave_it() public {
        for (uint256 i = 1; i <= 6; i++) {
            accepted(swarm.registerPeers(one(registration(i, owner(1), session(i), START + 1 days))));
        }
        for (uint256 i = 1; i <= 6; i += 2) {
            accepted(swarm.registerPeers(one(registration(i, owner(2), session(i), START + 2 days))));
        }
        address[] memory owners = new address[](2);
        (owners[0], owners[1]) = (owner(1), owner(2));
        string[][] memory ids = swarm.getPeerId(owners);
        for (uint256 o = 0; o < 2; o++) {
            same(ids[o].length, 3);
            for (uint256 i = 0; i < 3; i++) {
                same(swarm.getEoa(one(ids[o][i]))[0], owners[o]);
            }
        }
    }

    function test_a_proof_displaces_a_squatter_and_his_scores() public {
        vm.prank(STRANGER);
        swarm.registerPeer("first");
        vm.prank(STRANGER);
        swarm.registerPeer(id(1));
        vm.prank(STRANGER);
        swarm.registerPeer("last");
        string memory squatted = id(1);
        vm.prank(STRANGER);
        swarm.submitReward(0, 0, 500, squatted);
        register(1);
        same(reward(1), 0);
        same(swarm.peer(id(1)).owner, owner(1));
        same(swarm.peer(id(1)).reported, 0);
        accepted(swarm.submitReports(one(report(1, 0, 7))));
        same(reward(1), 7);
        address[] memory owners = new address[](1);
        owners[0] = STRANGER;
        string[][] memory ids = swarm.getPeerId(owners);
        same(ids[0].length, 2);
        same(ids[0][0], "first");
        same(ids[0][1], "last");
        vm.prank(STRANGER);
        vm.expectRevert(PeerIdAlreadyRegistered.selector);
        swarm.registerPeer(squatted);
        vm.prank(STRANGER);
        vm.expectRevert(InvalidVoterPeerId.selector);
        swarm.submitReward(0, 0, 1, squatted);
    }

    function test_a_claim_takes_a_free_id_of_bearable_length() public {
        swarm.registerPeer("QmSomebody");
        vm.expectRevert(PeerIdAlreadyRegistered.selector);
        swarm.registerPeer("QmSomebody");
        vm.expectRevert(InvalidPeerId.selector);
        swarm.registerPeer("");
        vm.expectRevert(InvalidPeerId.selector);
        swarm.registerPeer("00000000001111111111222222222233333333334444444444555555555566666");
        require(!swarm.peer("QmSomebody").proven);
    }

    function test_a_swarm_of_proven_peers_takes_no_claims() public {
        Config memory c = config();
        c.provenOnly = true;
        start(c);
        vm.expectRevert(ProofRequired.selector);
        swarm.registerPeer("QmSomebody");
        register(1);
    }
}
