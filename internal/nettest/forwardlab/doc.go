// Package forwardlab holds what the tests of the forwarder's datapaths share.
//
//   - Wire and Guest: a second netstack as the guest, joined to the gateway's stack by a link in memory. Unprivileged and
//     fast; the tests of the stack path use it.
//   - FakeGuest: a recorder in the place of the gateway's stack, for the datapath of datagrams.
//   - EnterNetns: the test runs again in a user and network namespace of its own, with a router in a second one.
//   - SendString, Expect, ExpectReset, Transfer, Call and others: data over a connection, with time limits.
//   - NewForwarder: a Forwarder with its own budget of descriptors, which must all be returned at the end.
//   - TestFlows: one suite of tests of the table of flows, which every datapath runs.
//
// It is for tests only and imports forwarder, stack, policy and flow, but none of the datapaths.
package forwardlab
