// Package cmdtest runs the command that a test binary belongs to, from the outside: the test binary itself is started again
// as the command. A command package's TestMain calls Main first:
//
//	func TestMain(m *testing.M) { cmdtest.Main(main); os.Exit(m.Run()) }
//
// A test starts the command with Start, which gives it two descriptors as the callers of a network helper do: 3, the exit
// descriptor, and 4, the ready descriptor.
package cmdtest
