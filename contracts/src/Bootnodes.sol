// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {InvalidBootnode, TooManyBootnodes} from "./Types.sol";
import {Rounds} from "./Rounds.sol";

/// @title Where a newcomer knocks first
/// @notice A short list of multiaddresses. `setBootnodes` replaces it in one step, so that it is never empty in between.
abstract contract Bootnodes is Rounds {
    uint256 public constant MAX_BOOTNODES = 16;
    uint256 public constant MAX_BOOTNODE_LENGTH = 256;

    string[] private _bootnodes;

    event BootnodesAdded(address indexed manager, uint256 count);
    event AllBootnodesCleared(address indexed manager);

    function getBootnodes() external view returns (string[] memory) {
        return _bootnodes;
    }

    function getBootnodesCount() external view returns (uint256) {
        return _bootnodes.length;
    }

    function setBootnodes(string[] calldata addresses) external onlyRole(BOOTNODE_MANAGER_ROLE) {
        delete _bootnodes;
        emit AllBootnodesCleared(msg.sender);
        _add(addresses);
    }

    function addBootnodes(string[] calldata newBootnodes) external onlyRole(BOOTNODE_MANAGER_ROLE) {
        _add(newBootnodes);
    }

    function clearBootnodes() external onlyRole(BOOTNODE_MANAGER_ROLE) {
        delete _bootnodes;
        emit AllBootnodesCleared(msg.sender);
    }

    function _add(string[] calldata addresses) private {
        if (_bootnodes.length + addresses.length > MAX_BOOTNODES) revert TooManyBootnodes();
        for (uint256 i = 0; i < addresses.length; i++) {
            uint256 length = bytes(addresses[i]).length;
            if (length == 0 || length > MAX_BOOTNODE_LENGTH) revert InvalidBootnode();
            _bootnodes.push(addresses[i]);
        }
        emit BootnodesAdded(msg.sender, addresses.length);
    }
}
