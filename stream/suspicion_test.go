package stream

import "testing"

// Each death of an owner must narrow the search, down to the one record that is condemned: a step that did not would kill processes without end, and one
// that went too far would condemn a record that has done nothing.
func TestEachDeathNarrowsTheSearch(t *testing.T) {
	const at, commitRecords, deaths = 100, 16, 2
	type step struct {
		hand      uint64 // what was in flight when the owner died
		died      bool
		want      Journal
		condemned uint64
	}
	for name, steps := range map[string][]step{
		"a record that kills each process": {
			{0, true, Journal{Probe: 8, Until: 116}, 0},
			{101, true, Journal{Probe: 4, Until: 108}, 0},
			{101, true, Journal{Probe: 2, Until: 104}, 0},
			{101, true, Journal{Probe: 1, Until: 102}, 0},
			{101, true, Journal{Probe: 1, Until: 102, Deaths: 1}, 0},
			{101, true, Journal{Probe: 1, Until: 102, Hand: 101, Deaths: 2}, 101},
		},
		"processes that are killed from outside, between batches": {
			{0, true, Journal{Probe: 8, Until: 116}, 0},
			{0, true, Journal{Probe: 8, Until: 116}, 0},
			{0, true, Journal{Probe: 8, Until: 116}, 0},
		},
		"a death after the commit of what was in flight": {
			{0, true, Journal{Probe: 8, Until: 116}, 0},
			{93, true, Journal{Probe: 8, Until: 116}, 0},
		},
		"no death": {
			{0, false, Journal{}, 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var j Journal
			for i, s := range steps {
				if j = withHand(j, s.hand); s.died {
					j = suspectAfter(j, at, commitRecords)
				}
				var condemned uint64
				if condemned, j = convict(j, at, deaths); j != s.want || condemned != s.condemned {
					t.Fatalf("step %d: journal %+v, record %d condemned; want %+v, %d", i+1, j, condemned, s.want, s.condemned)
				}
			}
		})
	}
}

// Once all suspects are committed, the journal is cleared.
func TestSuspicionEndsWithTheLastSuspect(t *testing.T) {
	suspects := Journal{Probe: 1, Until: 102, Deaths: 1}
	if _, j := convict(suspects, 102, 2); j != (Journal{}) {
		t.Errorf("journal %+v after the last suspect, want none", j)
	}
	if _, j := convict(suspects, 101, 2); j != (Journal{Probe: 1, Until: 102}) {
		t.Errorf("journal %+v before the last suspect", j)
	}
}
