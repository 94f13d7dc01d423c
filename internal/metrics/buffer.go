package metrics

import (
	"strconv"
	"time"
)

// Buffer are the metrics of one partition of a buffer. It implements buffer.Metrics.
type Buffer struct {
	set                            *Set
	name                           string
	writeTime, ackTime             *lazyObserver
	full, corrupt, gap, duplicates *lazyCounter
}

// Buffer returns the metrics of a partition.
func (s *Set) Buffer(name string) *Buffer {
	return &Buffer{
		set: s, name: name, writeTime: s.h("isb_jetstream_write_time_total", name), ackTime: s.h("isb_jetstream_ack_time_total", name),
		full: s.c("isb_jetstream_isFull_total", name), corrupt: s.c("levada_buffer_corrupt_total", name), gap: s.c("levada_buffer_gap_total", name),
		duplicates: s.c("levada_buffer_duplicates_total", name),
	}
}

// Wrote implements buffer.Metrics.
func (b *Buffer) Wrote(_ int, took time.Duration) { b.writeTime.observe(took) }

// WriteFailed implements buffer.Metrics.
func (b *Buffer) WriteFailed(error) {
	b.set.c("isb_jetstream_write_error_total", b.name, "retried").add(1)
}

// Full implements buffer.Metrics.
func (b *Buffer) Full() { b.full.add(1) }

// Acked implements buffer.Metrics.
func (b *Buffer) Acked(took time.Duration) { b.ackTime.observe(took) }

// Corrupt implements buffer.Metrics.
func (b *Buffer) Corrupt() { b.corrupt.add(1) }

// Gap implements buffer.Metrics.
func (b *Buffer) Gap(blocks int) { b.gap.add(blocks) }

// LostMessages counts messages that were lost with the memory of a broker.
func (b *Buffer) LostMessages(n int) {
	if n > 0 {
		b.set.c("levada_buffer_lost_messages_total", b.name).add(n)
	}
}

// Duplicates implements buffer.Metrics.
func (b *Buffer) Duplicates(messages int) { b.duplicates.add(messages) }

// Owned says under which epoch this process reads a shard of the partition, of a vertex that several processes share; 0 if it does not.
func (b *Buffer) Owned(shard int, epoch uint64) {
	owned, number := 0.0, strconv.Itoa(shard)
	if epoch > 0 {
		owned = 1
		b.set.gauges["levada_shard_epoch"].WithLabelValues(b.name, number).Set(float64(epoch))
		b.set.c("levada_shard_starts_total", b.name, number).add(1)
	}
	b.set.gauges["levada_shard_owned"].WithLabelValues(b.name, number).Set(owned)
}

// Usage sets how full the partition is: messages that are not acknowledged, those of them that are being processed, and the nominal length.
func (b *Buffer) Usage(pending, inFlight, length int) {
	b.set.gauges["isb_jetstream_buffer_ack_pending"].WithLabelValues(b.name).Set(float64(inFlight))
	b.set.gauges["isb_jetstream_buffer_pending"].WithLabelValues(b.name).Set(float64(pending))
	b.set.gauges["isb_jetstream_buffer_soft_usage"].WithLabelValues(b.name).Set(float64(pending) / float64(length))
	b.set.gauges["isb_jetstream_buffer_solid_usage"].WithLabelValues(b.name).Set(float64(pending) / float64(length))
}
