// Package e2e holds the end-to-end tests: the programs as they ship, started by an ordinary user without capabilities
// between two network namespaces (package topo), with the test binary itself as the command inside (package guest).
//
// The programs are taken from ROOTLESSNET_BIN, or built. A test that concerns the link runs over every kind that the
// machine allows: tap and tap-plain need a /dev/net/tun that users may open, packet needs nothing. With
// ROOTLESSNET_CI=1 nothing is skipped: where /dev/net/tun is meant to be open (TUN_MODE=0666) and is not, the tests fail.
// ROOTLESSNET_LONG=1 runs the long forms of the load tests.
//
// The tests named TestScorecardNN are the lines of docs/scorecard.md. TestPublish runs one list of cases of port forwarding on
// every datapath and every program that forwards ports.
package e2e
