package identity

// Reached returns the highest position seen of each lane.
func (s *Seen) Reached() map[string]uint64 {
	all := make(map[string]uint64, len(s.lanes))
	for name, l := range s.lanes {
		all[name] = l.floor
		if n := len(l.spans); n > 0 {
			all[name] = l.spans[n-1].hi
		}
	}
	return all
}
