package buffer

// InFlight is the number of messages that the reader has got and that are not done.
func (p *Partition) InFlight() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.held {
		if !h.done {
			n += h.messages
		}
	}
	return n
}
