// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Base} from "./Base.sol";
import {SwarmCoordinator} from "../src/SwarmCoordinator.sol";
import "../src/Types.sol";

contract RoundsTest is Base {
    function setUp() public {
        start(config());
    }

    function test_the_manager_advances_after_the_least_time_and_anyone_after_the_deadline() public {
        same(swarm.currentRound(), 0);
        same(swarm.currentStage(), 0);
        same(swarm.stageCount(), 1);
        same(swarm.deadline(), START + 600);
        vm.expectRevert(RoundNotOver.selector);
        swarm.updateStageAndRound();
        vm.warp(START + 10);
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.updateStageAndRound();
        (uint256 round, uint256 stage) = swarm.updateStageAndRound();
        same(round, 1);
        same(stage, 0);
        vm.warp(START + 610);
        vm.prank(STRANGER);
        swarm.updateStageAndRound();
        same(swarm.currentRound(), 2);
    }

    function testFuzz_no_key_stalls_the_swarm(uint32 late) public {
        swarm.revokeRole(swarm.STAGE_MANAGER_ROLE(), address(this));
        vm.warp(START + 600 + uint256(late));
        vm.prank(STRANGER);
        swarm.updateStageAndRound();
        same(swarm.currentRound(), 1);
    }

    function test_the_manager_ends_several_rounds_at_once_and_anyone_else_one() public {
        vm.warp(START + 10);
        vm.expectRevert(InvalidRoundNumber.selector);
        swarm.advanceTo(0);
        vm.expectRevert(InvalidRoundNumber.selector);
        swarm.advanceTo(129);
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.advanceTo(1);
        swarm.advanceTo(128);
        same(swarm.currentRound(), 128);
        same(swarm.deadline(), START + 610);
        vm.expectRevert(RoundNotOver.selector);
        swarm.advanceTo(130);
        vm.warp(START + 610);
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.advanceTo(130);
        vm.prank(STRANGER);
        swarm.advanceTo(129);
        same(swarm.currentRound(), 129);
    }

    function test_a_pause_stops_the_clock() public {
        vm.warp(START + 590);
        swarm.pause();
        vm.warp(START + 5_000);
        vm.expectRevert();
        swarm.updateStageAndRound();
        same(swarm.deadline(), START + 5_010);
        swarm.unpause();
        vm.warp(START + 5_009);
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.updateStageAndRound();
        vm.warp(START + 5_010);
        vm.prank(STRANGER);
        swarm.updateStageAndRound();
        same(swarm.currentRound(), 1);
    }

    function test_roles_are_the_owners_to_give() public {
        bytes32 role = swarm.STAGE_MANAGER_ROLE();
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.grantRole(role, STRANGER);
        swarm.grantRole(role, STRANGER);
        require(swarm.hasRole(role, STRANGER) && swarm.hasRole(swarm.OWNER_ROLE(), address(this)));
        vm.warp(START + 10);
        vm.prank(STRANGER);
        swarm.updateStageAndRound();
        swarm.revokeRole(role, STRANGER);
        require(!swarm.hasRole(role, STRANGER));
    }

    function test_a_finished_round_is_anchored_once() public {
        vm.expectRevert(InvalidRoundNumber.selector);
        swarm.anchorRound(0, bytes32(uint256(1)), 1, "ipfs://reports");
        next();
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.anchorRound(0, bytes32(uint256(1)), 1, "ipfs://reports");
        swarm.anchorRound(0, bytes32(uint256(1)), 1, "ipfs://reports");
        require(swarm.anchors(0) == bytes32(uint256(1)));
        vm.expectRevert(RoundAlreadyAnchored.selector);
        swarm.anchorRound(0, bytes32(uint256(2)), 1, "ipfs://reports");
    }

    function test_a_pause_stops_registrations_and_reports_until_it_ends() public {
        Registration[] memory peers = one(registration(1));
        Report[] memory reports = one(report(1, 0, 1));
        swarm.pause();
        vm.expectRevert();
        swarm.registerPeers(peers);
        vm.expectRevert();
        swarm.submitReports(reports);
        vm.expectRevert();
        swarm.commitReports(new SealedReport[](0));
        vm.expectRevert();
        swarm.registerPeer("QmSomebody");
        swarm.unpause();
        accepted(swarm.registerPeers(peers));
        accepted(swarm.submitReports(reports));
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.pause();
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.unpause();
    }

    function test_bootnodes_are_replaced_added_and_cleared() public {
        string[] memory nodes = new string[](2);
        (nodes[0], nodes[1]) = ("/ip4/10.0.0.1/tcp/1/p2p/a", "/ip4/10.0.0.2/tcp/1/p2p/b");
        swarm.setBootnodes(nodes);
        swarm.addBootnodes(one("/ip4/10.0.0.3/tcp/1/p2p/c"));
        same(swarm.getBootnodesCount(), 3);
        same(swarm.getBootnodes()[2], "/ip4/10.0.0.3/tcp/1/p2p/c");
        swarm.setBootnodes(one("/ip4/10.0.0.4/tcp/1/p2p/d"));
        same(swarm.getBootnodesCount(), 1);
        swarm.clearBootnodes();
        same(swarm.getBootnodesCount(), 0);
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.setBootnodes(nodes);
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.addBootnodes(nodes);
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.clearBootnodes();
        vm.expectRevert(InvalidBootnode.selector);
        swarm.setBootnodes(one(""));
        vm.expectRevert(InvalidBootnode.selector);
        swarm.setBootnodes(one(string(new bytes(257))));
        vm.expectRevert(TooManyBootnodes.selector);
        swarm.setBootnodes(new string[](17));
    }

    function test_a_swarm_that_could_not_work_is_not_made() public {
        Config memory c = config();
        vm.expectRevert(InvalidConfig.selector);
        new SwarmCoordinator(address(0), c);
        c.roundDuration = 0;
        vm.expectRevert(InvalidConfig.selector);
        new SwarmCoordinator(address(this), c);
        c = config();
        c.minRoundTime = 601;
        vm.expectRevert(InvalidConfig.selector);
        new SwarmCoordinator(address(this), c);
        c = config();
        c.maxReward = 0;
        vm.expectRevert(InvalidConfig.selector);
        new SwarmCoordinator(address(this), c);
        c.maxReward = 1 << 63;
        vm.expectRevert(InvalidConfig.selector);
        new SwarmCoordinator(address(this), c);
    }
}
