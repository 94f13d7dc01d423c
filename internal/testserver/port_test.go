package testserver

import "testing"

// Two servers of one test that are given the same port fail to start. With 1,000 of 20,000 ports that would happen in nearly each run of this test.
func TestNoPortIsGivenTwice(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		address := FreeAddress(t)
		if seen[address] {
			t.Fatalf("%s was given twice", address)
		}
		seen[address] = true
	}
}
