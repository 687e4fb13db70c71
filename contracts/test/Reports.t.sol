// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Base} from "./Base.sol";
import {SwarmCoordinator} from "../src/SwarmCoordinator.sol";
import "../src/Types.sol";

contract ReportsTest is Base {
    function setUp() public {
        start(config());
        for (uint256 i = 1; i <= 10; i++) {
            register(i);
        }
    }

    function sealedSwarm() private {
        Config memory c = config();
        c.sealedReports = true;
        start(c);
        for (uint256 i = 1; i <= 3; i++) {
            register(i);
        }
    }

    function swarm_at(uint256 round) private {
        while (swarm.currentRound() < round) {
            vm.warp(block.timestamp + 10);
            uint256 left = round - swarm.currentRound();
            swarm.advanceTo(swarm.currentRound() + (left < 128 ? left : 128));
        }
    }

    function votes(uint256 from, uint256 count) private returns (string[] memory ids) {
        ids = new string[](count);
        for (uint256 i = 0; i < count; i++) {
            ids[i] = id(from + i);
        }
    }

    function test_reports_count_once_a_round() public {
        vm.prank(STRANGER);
        accepted(swarm.submitReports(one(report(1, 0, 7, votes(2, 8)))));
        same(swarm.submitReports(one(report(1, 0, 9)))[0], RewardAlreadySubmitted.selector);
        same(reward(1), 7);
        for (uint256 i = 2; i < 10; i++) {
            same(wins(i), 1);
        }
        next();
        accepted(swarm.submitReports(one(report(1, 1, -3))));
        same(reward(1), 4);
    }

    function test_reports_come_in_any_order_and_none_erases_another() public {
        next();
        next();
        accepted(swarm.submitReports(one(report(1, 1, 5, votes(2, 1)))));
        same(swarm.submitReports(one(report(1, 3, 5)))[0], InvalidRoundNumber.selector);
        same(swarm.submitReports(one(report(1, type(uint256).max, 5)))[0], InvalidRoundNumber.selector);
        accepted(swarm.submitReports(one(report(1, 2, 5))));
        accepted(swarm.submitReports(one(report(1, 0, 5, votes(2, 1)))));
        for (uint256 round = 0; round < 3; round++) {
            same(swarm.submitReports(one(report(1, round, 5)))[0], RewardAlreadySubmitted.selector);
        }
        same(reward(1), 15);
        same(wins(2), 2);
        PeerInfo memory p = swarm.peer(id(1));
        same(p.round, 2);
        same(p.reported, 7);
        same(p.voted, 6);
    }

    function test_a_report_is_in_time_for_256_rounds() public {
        swarm_at(255);
        accepted(swarm.submitReports(one(report(1, 0, 5))));
        swarm_at(300);
        same(swarm.submitReports(one(report(2, 44, 5)))[0], InvalidRoundNumber.selector);
        accepted(swarm.submitReports(one(report(2, 45, 5))));
        same(swarm.submitReports(one(report(2, 45, 5)))[0], RewardAlreadySubmitted.selector);
        accepted(swarm.submitReports(one(report(2, 300, 5))));
        same(swarm.peer(id(2)).reported, 1 | 1 << 255);
        swarm_at(301);
        same(swarm.peer(id(2)).reported, 2);
        same(reward(2), 10);
    }

    function testFuzz_every_round_of_the_window_counts_once_in_any_order(uint256 seed) public {
        swarm_at(255 + seed % 300);
        uint256 current = swarm.currentRound();
        for (uint256 i = 0; i < 24; i++) {
            seed = uint256(keccak256(abi.encode(seed)));
            uint256 round = current - seed % 256;
            bool known = swarm.peer(id(1)).reported >> (current - round) & 1 != 0;
            bytes4 reason = swarm.submitReports(one(report(1, round, 1)))[0];
            same(reason, known ? RewardAlreadySubmitted.selector : bytes4(0));
            require(swarm.peer(id(1)).reported >> (current - round) & 1 != 0, "a report left no bit");
        }
        uint256 bits = swarm.peer(id(1)).reported;
        int256 count = 0;
        for (; bits != 0; bits &= bits - 1) {
            count++;
        }
        same(reward(1), count);
    }

    function test_a_peer_reports_rounds_from_its_registration_on_and_a_few_before() public {
        swarm_at(20);
        register(30);
        same(swarm.peer(id(30)).firstRound, 12);
        same(swarm.submitReports(one(report(30, 11, 5)))[0], InvalidRoundNumber.selector);
        accepted(swarm.submitReports(one(report(30, 12, 5))));
        accepted(swarm.registerPeers(one(registration(30, owner(5), session(30), START + 2 days))));
        same(swarm.peer(id(30)).firstRound, 12);
        vm.prank(STRANGER);
        swarm.registerPeer("QmLegacy");
        vm.prank(STRANGER);
        vm.expectRevert(InvalidRoundNumber.selector);
        swarm.submitReward(11, 0, 5, "QmLegacy");
        vm.prank(STRANGER);
        swarm.submitReward(12, 0, 5, "QmLegacy");
    }

    function testFuzz_a_round_gives_no_more_than_the_bound(int256 claimed) public {
        accepted(swarm.submitReports(one(report(1, 0, claimed))));
        same(reward(1), claimed > 1_000 ? int256(1_000) : claimed < -1_000 ? -int256(1_000) : claimed);
    }

    function test_bad_reports_are_named_and_their_neighbours_stand() public {
        string[] memory twice = votes(2, 2);
        twice[1] = twice[0];
        Report[] memory batch = new Report[](9);
        batch[0] = report(1, 0, 1);
        batch[1] = report(2, 0, type(int256).min);
        batch[2] = report(3, 0, 1);
        batch[2].peerId = "00000000001111111111222222222233333333334444444444555555555566666";
        batch[3] = report(77, 0, 1);
        batch[4] = report(4, 0, 1, twice);
        batch[5] = report(4, 0, 1, votes(1, 9));
        batch[6] = report(4, 0, 1);
        batch[6].reward = 2;
        batch[7] = report(1, 0, 1);
        batch[8] = report(5, 0, 3);
        bytes4[] memory reasons = swarm.submitReports(batch);
        same(reasons[0], bytes4(0));
        same(reasons[1], bytes4(0));
        same(reasons[2], InvalidPeerId.selector);
        same(reasons[3], UnknownPeer.selector);
        same(reasons[4], InvalidVote.selector);
        same(reasons[5], InvalidVote.selector);
        same(reasons[6], InvalidSignature.selector);
        same(reasons[7], RewardAlreadySubmitted.selector);
        same(reasons[8], bytes4(0));
        same(reward(2), -1_000);
        same(reward(4), 0);
        same(reward(5), 3);
        same(wins(2), 0);
    }

    function test_votes_for_oneself_ones_own_and_nobody_do_not_count() public {
        accepted(swarm.registerPeers(one(registration(20, owner(1), session(20), START + 1 days))));
        string[] memory winners = new string[](4);
        (winners[0], winners[1], winners[2], winners[3]) = (id(1), id(20), "nobody", id(2));
        accepted(swarm.submitReports(one(report(1, 0, 1, winners))));
        same(wins(1), 0);
        same(wins(20), 0);
        same(swarm.getTotalWins("nobody"), 0);
        same(wins(2), 1);
        same(reward(1), 1);
    }

    function test_only_the_signer_of_the_last_registration_speaks() public {
        Report memory old = report(1, 0, 1);
        accepted(swarm.registerPeers(one(registration(1, owner(1), owner(9), START + 2 days))));
        same(swarm.submitReports(one(old))[0], InvalidSignature.selector);
    }

    function test_a_report_for_another_chain_or_contract_is_refused() public {
        Report memory r = report(1, 0, 1);
        SwarmCoordinator here = swarm;
        swarm = new SwarmCoordinator(address(this), config());
        register(1);
        same(swarm.submitReports(one(r))[0], InvalidSignature.selector);
        swarm = here;
        vm.chainId(10);
        same(swarm.submitReports(one(r))[0], InvalidSignature.selector);
    }

    function test_the_owner_reports_and_votes_as_in_0_4_2() public {
        string memory mine = id(1);
        string[] memory winners = votes(1, 2);
        vm.prank(owner(1));
        swarm.submitReward(0, 0, 5, mine);
        vm.prank(owner(1));
        vm.expectRevert(RewardAlreadySubmitted.selector);
        swarm.submitReward(0, 0, 5, mine);
        vm.prank(owner(1));
        swarm.submitWinners(0, winners, mine);
        vm.prank(owner(1));
        vm.expectRevert(WinnerAlreadyVoted.selector);
        swarm.submitWinners(0, winners, mine);
        same(reward(1), 5);
        same(wins(1), 0);
        same(wins(2), 1);
        vm.expectRevert(InvalidVoterPeerId.selector);
        swarm.submitReward(0, 0, 5, mine);
        vm.expectRevert(InvalidVoterPeerId.selector);
        swarm.submitWinners(0, winners, mine);
        vm.expectRevert(InvalidRoundNumber.selector);
        swarm.submitReward(1, 0, 5, mine);
        vm.expectRevert(InvalidRoundNumber.selector);
        swarm.submitWinners(1, winners, mine);
        vm.expectRevert(InvalidStageNumber.selector);
        swarm.submitReward(0, 1, 5, mine);
        same(swarm.submitReports(one(report(1, 0, 9)))[0], RewardAlreadySubmitted.selector);
    }

    function test_an_empty_vote_changes_nothing_and_repeats_are_refused() public {
        string memory mine = id(1);
        string[] memory twice = votes(2, 2);
        twice[1] = twice[0];
        for (uint256 i = 0; i < 3; i++) {
            vm.prank(owner(1));
            swarm.submitWinners(0, new string[](0), mine);
        }
        same(swarm.peer(mine).voted, 0);
        vm.prank(owner(1));
        vm.expectRevert(InvalidVote.selector);
        swarm.submitWinners(0, twice, mine);
        twice = votes(2, 1);
        vm.prank(owner(1));
        swarm.submitWinners(0, twice, mine);
        same(wins(2), 1);
        same(swarm.submitReports(one(report(1, 0, 9, twice)))[0], WinnerAlreadyVoted.selector);
        same(reward(1), 0);
        accepted(swarm.submitReports(one(report(1, 0, 9))));
    }

    function test_a_sealed_report_is_committed_then_opened() public {
        sealedSwarm();
        Report memory r = report(1, 0, 7, votes(2, 1));
        SealedReport memory c = commit(r, 1);
        same(swarm.submitReports(one(r))[0], InvalidRoundNumber.selector);
        vm.prank(STRANGER);
        accepted(swarm.commitReports(one(c)));
        same(swarm.commitReports(one(c))[0], AlreadySealed.selector);
        next();
        Report memory changed = report(1, 0, 8, votes(2, 1));
        same(swarm.submitReports(one(changed))[0], SealMismatch.selector);
        r.salt = bytes32(uint256(99));
        same(swarm.submitReports(one(r))[0], SealMismatch.selector);
        r.salt = bytes32(uint256(1));
        accepted(swarm.submitReports(one(r)));
        same(swarm.submitReports(one(r))[0], RewardAlreadySubmitted.selector);
        same(swarm.submitReports(one(report(2, 0, 1)))[0], SealMismatch.selector);
        same(reward(1), 7);
        same(wins(2), 1);
    }

    function test_a_seal_comes_before_its_round_ends_and_opens_in_one_of_the_next_eight() public {
        sealedSwarm();
        Report memory r = report(1, 0, 7);
        accepted(swarm.commitReports(one(commit(r, 1))));
        accepted(swarm.commitReports(one(commit(report(2, 7, 7), 2))));
        same(swarm.commitReports(one(commit(report(2, 8, 7), 2)))[0], InvalidRoundNumber.selector);
        same(swarm.submitReports(one(report(2, 7, 7)))[0], InvalidRoundNumber.selector);
        next();
        same(swarm.commitReports(one(commit(report(2, 0, 7), 2)))[0], InvalidRoundNumber.selector);
        vm.warp(block.timestamp + 10);
        swarm.advanceTo(8);
        accepted(swarm.submitReports(one(r)));
        accepted(swarm.submitReports(one(report(2, 7, 7))));
        accepted(swarm.commitReports(one(commit(report(1, 8, 7), 1))));
        vm.warp(block.timestamp + 10);
        vm.expectRevert(InvalidRoundNumber.selector);
        swarm.advanceTo(17);
        swarm.advanceTo(16);
        next();
        same(swarm.submitReports(one(report(1, 8, 7)))[0], InvalidRoundNumber.selector);
        same(reward(1), 7);
        same(reward(2), 7);
    }

    function test_two_seals_of_a_peer_stand_beside_each_other_and_the_first_of_a_round_stays() public {
        sealedSwarm();
        accepted(swarm.commitReports(one(commit(report(1, 0, 7), 1))));
        accepted(swarm.commitReports(one(commit(report(1, 1, 8), 1))));
        same(swarm.commitReports(one(commit(report(1, 0, 9), 1)))[0], AlreadySealed.selector);
        next();
        next();
        accepted(swarm.submitReports(one(report(1, 1, 8))));
        accepted(swarm.submitReports(one(report(1, 0, 7))));
        same(reward(1), 15);
        same(uint32(uint256(swarm.peer(id(1)).seals[1])), 2);
    }

    function test_a_pause_costs_a_sealed_report_none_of_its_time() public {
        sealedSwarm();
        Report memory r = report(1, 0, 7);
        accepted(swarm.commitReports(one(commit(r, 1))));
        vm.warp(START + 500);
        swarm.pause();
        vm.warp(START + 10_500);
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.updateStageAndRound();
        same(swarm.deadline(), START + 10_600);
        swarm.unpause();
        same(swarm.deadline(), START + 10_600);
        vm.prank(STRANGER);
        vm.expectRevert();
        swarm.updateStageAndRound();
        next();
        accepted(swarm.submitReports(one(r)));
    }

    function test_bad_seals_are_named() public {
        sealedSwarm();
        SealedReport memory c = commit(report(3, 0, 7), 3);
        c.seal = bytes32(uint256(1));
        same(swarm.commitReports(one(c))[0], InvalidSignature.selector);
        c.peerId = "00000000001111111111222222222233333333334444444444555555555566666";
        same(swarm.commitReports(one(c))[0], InvalidPeerId.selector);
        same(swarm.commitReports(one(commit(report(77, 0, 7), 77)))[0], UnknownPeer.selector);
        string memory mine = id(1);
        vm.prank(owner(1));
        vm.expectRevert(SealRequired.selector);
        swarm.submitReward(0, 0, 1, mine);
        vm.prank(owner(1));
        vm.expectRevert(SealRequired.selector);
        swarm.submitWinners(0, new string[](0), mine);
    }

    function test_an_open_swarm_takes_no_seals() public {
        same(swarm.commitReports(one(commit(report(1, 0, 7), 1)))[0], NotSealed.selector);
    }
}
