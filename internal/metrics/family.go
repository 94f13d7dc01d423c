package metrics

// family has the names of Numaflow's series for one kind of vertex. An empty name is a series that the kind does not have.
type family struct {
	read, readBytes, dataRead, dataReadBytes string
	ack, nack, readErrors                    string
	readTime, ackTime, processTime           string
	transformer, function                    stageFamily
	sink, fallback, onSuccess                sinkFamily
	dropped, droppedBytes, droppedBySink     string
	critical, batchSize                      string
}

type stageFamily struct{ read, write, failed, dropped, took string }

type sinkFamily struct{ write, bytes, failed, took string }

// ofPipeline are the series of a vertex of a pipeline.
var ofPipeline = family{
	read: "forwarder_read_total", readBytes: "forwarder_read_bytes_total", dataRead: "forwarder_data_read_total", dataReadBytes: "forwarder_data_read_bytes_total",
	ack: "forwarder_ack_total", nack: "forwarder_nack_total", readErrors: "forwarder_read_error_total",
	readTime: "forwarder_read_processing_time", ackTime: "forwarder_ack_processing_time", processTime: "forwarder_processing_time",
	transformer: stageFamily{
		"source_forwarder_transformer_read_total", "source_forwarder_transformer_write_total", "source_forwarder_transformer_error_total",
		"source_forwarder_transformer_drop_total", "source_forwarder_transformer_processing_time",
	},
	function:  stageFamily{"forwarder_udf_read_total", "forwarder_udf_write_total", "forwarder_udf_error_total", "forwarder_ud_drop_total", "forwarder_udf_processing_time"},
	sink:      sinkFamily{"forwarder_write_total", "forwarder_write_bytes_total", "forwarder_write_error_total", "forwarder_write_processing_time"},
	fallback:  sinkFamily{"forwarder_fbsink_write_total", "forwarder_fbsink_write_bytes_total", "forwarder_fbsink_write_errors_total", "forwarder_fbsink_write_processing_time"},
	onSuccess: sinkFamily{"forwarder_onsuccess_sink_write_total", "forwarder_onsuccess_sink_write_bytes_total", "forwarder_onsuccess_sink_write_errors_total", "forwarder_onsuccess_sink_write_processing_time"},
	dropped:   "forwarder_drop_total", droppedBytes: "forwarder_drop_bytes_total",
	critical: "forwarder_critical_error_total", batchSize: "forwarder_read_batch_size",
}

// ofMono are the series of a MonoVertex. Their labels name neither a partition nor the reason of a drop.
var ofMono = family{
	read: "monovtx_read_total", readBytes: "monovtx_read_bytes_total", ack: "monovtx_ack_total", nack: "monovtx_nack_total",
	readTime: "monovtx_read_time", ackTime: "monovtx_ack_time", processTime: "monovtx_processing_time",
	transformer: stageFamily{dropped: "monovtx_transformer_dropped_total", took: "monovtx_transformer_time"},
	function:    stageFamily{failed: "monovtx_udf_error_total", dropped: "monovtx_udf_drop_total", took: "monovtx_udf_time"},
	sink:        sinkFamily{write: "monovtx_sink_write_total", failed: "monovtx_sink_write_errors_total", took: "monovtx_sink_time"},
	fallback:    sinkFamily{write: "monovtx_fallback_sink_write_total", took: "monovtx_fallback_sink_time"},
	onSuccess:   sinkFamily{write: "monovtx_onsuccess_sink_write_total", took: "monovtx_onsuccess_sink_time"},
	dropped:     "monovtx_dropped_total", droppedBySink: "monovtx_sink_dropped_total",
	critical: "monovtx_critical_error_total", batchSize: "monovtx_read_batch_size",
}
