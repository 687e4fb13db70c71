// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Base} from "./Base.sol";
import {SwarmCoordinator} from "../src/SwarmCoordinator.sol";
import "../src/Types.sol";

/// What each call costs with the code that is shipped (the artifact, not this build), kept in .gas-snapshot within 2 %.
contract GasTest is Base {
    Registration[] private _registrations;
    Report[] private _first;
    Report[] private _second;
    Report[] private _voting;

    function setUp() public {
        vm.warp(START);
        bytes memory code = vm.parseJsonBytes(vm.readFile("artifacts/SwarmCoordinator.json"), ".bytecode");
        swarm = _deployed(code, false);
        for (uint256 i = 1; i <= 50; i++) {
            _registrations.push(registration(100 + i));
            accepted(swarm.registerPeers(one(registration(i))));
            _first.push(report(i, 0, 5));
            _second.push(report(i, 1, 5));
        }
        accepted(swarm.submitReports(_first));
        string[] memory winners = new string[](8);
        for (uint256 i = 0; i < 8; i++) {
            winners[i] = id(40 + i);
        }
        for (uint256 i = 1; i <= 20; i++) {
            _voting.push(report(i, 1, 5, winners));
        }
        next();
    }

    function test_gas_registrations_50() public {
        swarm.registerPeers(_registrations);
    }

    function test_gas_reports_50() public {
        swarm.submitReports(_second);
    }

    function test_gas_reports_with_eight_winners_20() public {
        swarm.submitReports(_voting);
    }

    function test_gas_round() public {
        next();
    }

    function test_the_artifact_is_this_contract() public {
        same(uint256(swarm.domainSeparator()) == 0 ? 0 : 1, 1);
        accepted(swarm.registerPeers(_registrations));
        accepted(swarm.submitReports(_second));
    }

    function _deployed(bytes memory code, bool sealedReports) private returns (SwarmCoordinator made) {
        Config memory c = config();
        c.sealedReports = sealedReports;
        bytes memory init = abi.encodePacked(code, abi.encode(address(this), c));
        assembly {
            made := create(0, add(init, 32), mload(init))
        }
        require(address(made).code.length > 0);
    }
}
