package engine

// Result says where the messages of a pipeline are when its process has ended. Counts of messages are of this process.
type Result struct {
	Namespace, Name, Kind string
	// Paused says that the manifest pauses the pipeline: nothing of it ran.
	Paused bool
	// Finished says that its sources have ended and that everything they gave is delivered, dropped or dead-lettered. That is proven, not counted.
	Finished bool
	Read     int64 // from the sources
	// Delivered counts what sinks took, once for each sink.
	Delivered, DeadLettered, Dropped, Duplicates int64
	// Buffered are messages in the buffers that are not done, consumed or not, InFlight those that were read from sources and are not acknowledged to them.
	Buffered, InFlight int64
	// InMemory are those of Buffered that a restart of the broker loses, since it keeps the buffer in memory. Lost are messages whose buffer was in memory, and is
	// gone: they are in no other count.
	InMemory, Lost int64
	// Unread are the source vertices whose input has an end that was not reached.
	Unread []string
}

// Kept reports whether messages of the pipeline wait for the next run.
func (r *Result) Kept() bool {
	return !r.Finished && (r.Buffered > 0 || r.InFlight > 0 || len(r.Unread) > 0)
}

// Result says where the messages are. Nothing outside of the process is asked.
func (p *Pipeline) Result() Result {
	r := Result{Namespace: p.Namespace, Name: p.Name, Kind: p.Kind, Paused: p.Paused, Finished: p.Finished()}
	for _, v := range p.vertices {
		r.add(v)
	}
	return r
}

// add counts a vertex. A pipeline that is proven to have finished keeps nothing, whatever counts say: they are estimates after retries of a write.
func (r *Result) add(v *Vertex) {
	s := v.Counts()
	r.DeadLettered += s.DeadLetters
	r.Dropped += s.Dropped
	r.Duplicates += s.Duplicates
	switch {
	case !v.IsSource():
		if !r.Finished {
			r.Buffered += s.Pending + s.Consumed
		}
	default:
		r.Read += s.In
		if !r.Finished {
			r.InFlight += max(0, s.In-s.Acked)
		}
		if v.Finite && !v.Ended() {
			r.Unread = append(r.Unread, v.Name)
		}
	}
	for _, in := range v.reads() {
		switch n := int64(in.Partition.Pending() + in.Partition.Consumed()); {
		case r.Finished || !in.Partition.InMemory():
		case in.Partition.Gone():
			r.Lost, r.Buffered = r.Lost+n, max(0, r.Buffered-n)
		default:
			r.InMemory += n
		}
	}
	if v.IsSink() {
		r.Delivered += s.Delivered
	}
}
