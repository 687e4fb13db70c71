// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Base} from "./Base.sol";
import {SwarmCoordinator} from "../src/SwarmCoordinator.sol";
import "../src/Types.sol";

/// Twelve peers, and strangers who claim, replay and squat, in any order; what it expects of the swarm it counts by itself.
contract Crowd is Base {
    uint256 internal constant PEERS = 12;

    int256 public expectedReward;
    uint256 public votesCast;
    uint256 public reportsTaken;
    mapping(uint256 secret => uint256) public deadlineOf;
    mapping(uint256 secret => int256) public rewardOf;
    mapping(bytes32 peerAndRound => uint256) private _reports;
    bool public twiceInARound;
    bool public stalled;

    constructor() {
        start(config());
    }

    function coordinator() external view returns (SwarmCoordinator) {
        return swarm;
    }

    function peerOf(uint256 n) public returns (string memory) {
        return id(1 + n % PEERS);
    }

    function prove(uint256 who, uint256 later, uint256 newOwner) external {
        uint256 secret = 1 + who % PEERS;
        uint256 deadline = block.timestamp + later % 1 days;
        bool takes = deadline > deadlineOf[secret] || (deadlineOf[secret] == 0);
        bytes4 reason = swarm.registerPeers(one(registration(secret, owner(newOwner % PEERS), session(secret), deadline)))[0];
        require((reason == 0) == takes, "a proof was taken or refused against its deadline");
        if (!takes) return;
        if (deadlineOf[secret] == 0) {
            expectedReward -= rewardOf[secret];
            rewardOf[secret] = 0;
        }
        deadlineOf[secret] = deadline;
    }

    function claim(uint256 who) external {
        string memory peerId = id(1 + who % PEERS);
        if (swarm.peer(peerId).owner != address(0)) vm.expectRevert(PeerIdAlreadyRegistered.selector);
        vm.prank(STRANGER);
        swarm.registerPeer(peerId);
    }

    function say(uint256 who, uint256 round, int256 claimed, uint256 first, uint256 count) external {
        uint256 secret = 1 + who % PEERS;
        uint256 current = swarm.currentRound();
        round = current < 2 ? round % (current + 2) : current - 1 + round % 3;
        string[] memory winners = new string[](count % 9);
        for (uint256 i = 0; i < winners.length; i++) {
            winners[i] = id(1 + (first % PEERS + i) % PEERS);
        }
        Report memory r = report(secret, round, claimed, winners);
        Report[] memory twice = new Report[](2);
        (twice[0], twice[1]) = (r, r);
        uint256 before = totalWins();
        bytes4[] memory reasons = swarm.submitReports(twice);
        require(reasons[1] != 0, "one report was taken twice");
        if (reasons[0] != 0) return;
        _count(secret, round, claimed);
        votesCast += winners.length;
        require(totalWins() - before <= winners.length, "more votes than were cast");
    }

    function sayAsOwner(uint256 who, int256 claimed) external {
        uint256 secret = 1 + who % PEERS;
        string memory peerId = id(secret);
        PeerInfo memory p = swarm.peer(peerId);
        uint256 round = swarm.currentRound();
        if (p.owner == address(0) || p.reported & 1 != 0) return;
        vm.prank(p.owner);
        swarm.submitReward(round, 0, claimed, peerId);
        _count(secret, round, claimed);
    }

    function advance(uint256 wait) external {
        vm.warp(block.timestamp + wait % 1_200);
        if (wait % 3 == 0 && wait % 1_200 >= 10) swarm.advanceTo(swarm.currentRound() + 1 + wait % 5);
        bool over = block.timestamp >= swarm.deadline();
        vm.prank(STRANGER);
        try swarm.updateStageAndRound() {}
        catch {
            stalled = stalled || over;
        }
    }

    function totalWins() public returns (uint256 sum) {
        for (uint256 i = 1; i <= PEERS; i++) {
            sum += wins(i);
        }
    }

    function totalReward() public returns (int256 sum) {
        for (uint256 i = 1; i <= PEERS; i++) {
            sum += reward(i);
        }
    }

    function _count(uint256 secret, uint256 round, int256 claimed) private {
        int256 bounded = claimed > 1_000 ? int256(1_000) : claimed < -1_000 ? -int256(1_000) : claimed;
        expectedReward += bounded;
        rewardOf[secret] += bounded;
        bytes32 key = keccak256(abi.encode(secret, round, deadlineOf[secret] != 0));
        twiceInARound = twiceInARound || ++_reports[key] > 1;
        reportsTaken++;
    }
}

contract InvariantsTest {
    Crowd private _crowd;

    function setUp() public {
        _crowd = new Crowd();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_crowd);
    }

    function invariant_rewards_add_up() public {
        require(_crowd.totalReward() == _crowd.expectedReward());
    }

    function invariant_votes_never_exceed_those_cast_and_eight_a_report() public {
        require(_crowd.totalWins() <= _crowd.votesCast() && _crowd.votesCast() <= 8 * _crowd.reportsTaken());
    }

    function invariant_one_report_a_peer_and_round() public view {
        require(!_crowd.twiceInARound());
    }

    function invariant_no_stall_after_the_deadline() public view {
        require(!_crowd.stalled());
    }

    function invariant_no_squatting_after_a_proof() public {
        for (uint256 i = 0; i < 12; i++) {
            PeerInfo memory p = _crowd.coordinator().peer(_crowd.peerOf(i));
            require(p.proven == (_crowd.deadlineOf(1 + i) != 0) && p.deadline == _crowd.deadlineOf(1 + i));
            require(!p.proven || p.owner != address(0xBEEF));
        }
    }
}
