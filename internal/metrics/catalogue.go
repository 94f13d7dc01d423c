package metrics

import "github.com/prometheus/client_golang/prometheus"

type kind int

const (
	counter kind = iota
	gauge
	histogram
)

type metric struct {
	name, help string
	kind       kind
	labels     []string
	buckets    []float64
}

// catalogue is every metric of a data plane process. Histograms of Numaflow's are in microseconds.
var catalogue = []metric{
	{"forwarder_read_total", "Messages read.", counter, withPartition, nil},
	{"forwarder_data_read_total", "Messages read that carry data.", counter, withPartition, nil},
	{"forwarder_read_bytes_total", "Bytes of payload read.", counter, withPartition, nil},
	{"forwarder_data_read_bytes_total", "Bytes of payload read that carry data.", counter, withPartition, nil},
	{"forwarder_read_error_total", "Failed attempts to read.", counter, withPartition, nil},
	{"forwarder_write_total", "Messages written durably.", counter, withPartition, nil},
	{"forwarder_write_bytes_total", "Bytes of payload written durably.", counter, withPartition, nil},
	{"forwarder_write_error_total", "Messages that could not be written at an attempt.", counter, withPartition, nil},
	{"forwarder_ack_total", "Messages acknowledged.", counter, withPartition, nil},
	{"forwarder_nack_total", "Messages given back to be tried again.", counter, withPartition, nil},
	{"forwarder_drop_total", "Messages that went nowhere.", counter, withReason, nil},
	{"forwarder_drop_bytes_total", "Bytes of payload that went nowhere.", counter, withReason, nil},
	{"forwarder_critical_error_total", "Ends of user code that should not have been.", counter, append(pipelineLabels[:4:4], "reason"), nil},
	{"forwarder_read_processing_time", "Time to read a batch.", histogram, withPartition, nil},
	{"forwarder_write_processing_time", "Time to write a batch.", histogram, withPartition, nil},
	{"forwarder_ack_processing_time", "Time to acknowledge a batch.", histogram, withPartition, nil},
	{"forwarder_processing_time", "Time from read to acknowledged, of a batch.", histogram, withPartition, nil},
	{"forwarder_read_batch_size", "Messages in a batch at the most.", gauge, pipelineLabels, nil},
	{"vertex_pending_messages_raw", "Messages that wait to be processed.", gauge, withPartition, nil},
	{"vertex_pending_messages", "Messages that wait to be processed, averaged over a period: 1m, 5m, 15m, or default, 2 minutes.", gauge, []string{"pipeline", "vertex", "vertex_type", "partition_name", "period"}, nil},

	{"source_forwarder_transformer_read_total", "Messages given to the transformer.", counter, withPartition, nil},
	{"source_forwarder_transformer_write_total", "Messages that the transformer answered with.", counter, withPartition, nil},
	{"source_forwarder_transformer_error_total", "Messages that the transformer could not process at an attempt.", counter, withPartition, nil},
	{"source_forwarder_transformer_drop_total", "Messages that the transformer dropped.", counter, withPartition, nil},
	{"source_forwarder_transformer_processing_time", "Time of the transformer for a batch.", histogram, withPartition, nil},

	{"forwarder_udf_read_total", "Messages given to the function.", counter, withPartition, nil},
	{"forwarder_udf_write_total", "Messages that the function answered with.", counter, withPartition, nil},
	{"forwarder_udf_error_total", "Messages that the function could not process at an attempt.", counter, withPartition, nil},
	{"forwarder_ud_drop_total", "Messages that the function dropped.", counter, withPartition, nil},
	{"forwarder_udf_processing_time", "Time of the function for a batch.", histogram, withPartition, nil},

	{"forwarder_fbsink_write_total", "Messages written to the fallback sink.", counter, withPartition, nil},
	{"forwarder_fbsink_write_bytes_total", "Bytes written to the fallback sink.", counter, withPartition, nil},
	{"forwarder_fbsink_write_errors_total", "Messages that the fallback sink did not take at an attempt.", counter, withPartition, nil},
	{"forwarder_fbsink_write_processing_time", "Time of the fallback sink for a batch.", histogram, withPartition, nil},
	{"forwarder_onsuccess_sink_write_total", "Messages written to the on-success sink.", counter, withPartition, nil},
	{"forwarder_onsuccess_sink_write_bytes_total", "Bytes written to the on-success sink.", counter, withPartition, nil},
	{"forwarder_onsuccess_sink_write_errors_total", "Messages that the on-success sink did not take at an attempt.", counter, withPartition, nil},
	{"forwarder_onsuccess_sink_write_processing_time", "Time of the on-success sink for a batch.", histogram, withPartition, nil},

	{"monovtx_read_total", "Messages read.", counter, monoLabels, nil},
	{"monovtx_read_bytes_total", "Bytes of payload read.", counter, monoLabels, nil},
	{"monovtx_ack_total", "Messages acknowledged.", counter, monoLabels, nil},
	{"monovtx_nack_total", "Messages given back to be tried again.", counter, monoLabels, nil},
	{"monovtx_dropped_total", "Messages that went nowhere.", counter, monoLabels, nil},
	{"monovtx_critical_error_total", "Ends of user code that should not have been.", counter, append(monoLabels[:2:2], "reason"), nil},
	{"monovtx_pending_raw", "Messages that wait at the source.", gauge, monoLabels, nil},
	{"monovtx_pending", "Messages that wait at the source, averaged over a period.", gauge, []string{"mvtx_name", "period"}, nil},
	{"monovtx_read_batch_size", "Messages in a batch at the most.", gauge, monoLabels, nil},
	{"monovtx_processing_time", "Time from read to acknowledged, of a batch.", histogram, monoLabels, nil},
	{"monovtx_read_time", "Time to read a batch.", histogram, monoLabels, nil},
	{"monovtx_ack_time", "Time to acknowledge a batch.", histogram, monoLabels, nil},
	{"monovtx_transformer_time", "Time of the transformer for a batch.", histogram, monoLabels, nil},
	{"monovtx_transformer_dropped_total", "Messages that the transformer dropped.", counter, monoLabels, nil},
	{"monovtx_udf_time", "Time of the function for a batch.", histogram, monoLabels, nil},
	{"monovtx_udf_error_total", "Messages that the function could not process at an attempt.", counter, monoLabels, nil},
	{"monovtx_udf_drop_total", "Messages that the function dropped.", counter, monoLabels, nil},
	{"monovtx_sink_write_total", "Messages written to the sink.", counter, monoLabels, nil},
	{"monovtx_sink_write_errors_total", "Messages that the sink did not take at an attempt.", counter, monoLabels, nil},
	{"monovtx_sink_dropped_total", "Messages that the sink dropped after its retries.", counter, monoLabels, nil},
	{"monovtx_sink_time", "Time of the sink for a batch.", histogram, monoLabels, nil},
	{"monovtx_fallback_sink_write_total", "Messages written to the fallback sink.", counter, monoLabels, nil},
	{"monovtx_fallback_sink_time", "Time of the fallback sink for a batch.", histogram, monoLabels, nil},
	{"monovtx_onsuccess_sink_write_total", "Messages written to the on-success sink.", counter, monoLabels, nil},
	{"monovtx_onsuccess_sink_time", "Time of the on-success sink for a batch.", histogram, monoLabels, nil},

	{"isb_jetstream_isFull_total", "Times a writer had to wait for room.", counter, bufferLabels, nil},
	{"isb_jetstream_write_error_total", "Failed attempts to write a block.", counter, append(bufferLabels[:1:1], "reason"), nil},
	{"isb_jetstream_write_time_total", "Time to write a block durably.", histogram, bufferLabels, nil},
	{"isb_jetstream_ack_time_total", "Time to acknowledge a block.", histogram, bufferLabels, nil},
	{"isb_jetstream_buffer_pending", "Messages in the buffer that are not acknowledged.", gauge, bufferLabels, nil},
	{"isb_jetstream_buffer_ack_pending", "Messages of the buffer that are being processed.", gauge, bufferLabels, nil},
	{"isb_jetstream_buffer_soft_usage", "Messages that are not acknowledged, as a share of bufferMaxLength.", gauge, bufferLabels, nil},
	{"isb_jetstream_buffer_solid_usage", "The same: what is acknowledged takes no room here.", gauge, bufferLabels, nil},

	{"levada_end_to_end_latency_seconds", "Time from a message's entry into the pipeline until a sink had it.", histogram, []string{"pipeline", "vertex"}, prometheus.ExponentialBuckets(0.0005, 1.5, 36)},
	{"levada_function_crashes_total", "Ends of user code that should not have been, by reason: exit, signal, hang, panic, error, protocol, start, isolated, and disconnect where a function that is started elsewhere ended the connection.", counter, []string{"pipeline", "vertex", "role", "reason"}, nil},
	{"levada_dead_letters_total", "Messages that were dead-lettered.", counter, []string{"pipeline", "vertex", "reason"}, nil},
	{"levada_sink_duplicates_total", "Messages that the sink's stream had already when this process wrote them for the first time: written before a crash, or given twice by the source.", counter, []string{"pipeline", "vertex", "role"}, nil},
	{"levada_source_headers_dropped_total", "Headers of messages that a source dropped because they are not UTF-8, which functions could not take.", counter, []string{"pipeline", "vertex"}, nil},
	{"levada_buffer_corrupt_total", "Stored blocks that were not what was written.", counter, bufferLabels, nil},
	{"levada_buffer_gap_total", "Stored blocks that are missing.", counter, bufferLabels, nil},
	{"levada_buffer_lost_messages_total", "Messages that were lost with a buffer in the memory of a broker, found at the start.", counter, bufferLabels, nil},
	{"levada_buffer_duplicates_total", "Messages that were stored twice and counted once.", counter, bufferLabels, nil},
	{"levada_shard_owned", "1 if this process reads the shard of a partition, of a vertex that several processes share, 0 if it has read it before.", gauge, shardLabels, nil},
	{"levada_shard_epoch", "Epoch under which this process has last read the shard: it rises with each owner.", gauge, shardLabels, nil},
	{"levada_shard_starts_total", "Times that this process has taken the shard.", counter, shardLabels, nil},
}
