//go:build !linux

package stream

// There are no abstract sockets here, and no pods either: leases of dead processes run out by themselves.

func announce(string) bool { return false }

func answers(string) bool { return true }
