package catalogue

import (
	"github.com/levada-io/levada/internal/dataplane/function/builtin"
	"github.com/levada-io/levada/internal/dataplane/sink/builtinsink"
	"github.com/levada-io/levada/internal/dataplane/source/builtinsource"
)

// What the expressions of the samples are.
const (
	goodGreetings = `int(json(payload).id) < 100 && json(payload).msg == 'hello' && sprig.contains('good', string(json(payload).desc))`
	lowID         = `int(json(payload).id) < 100`
)

// catalogue is all builtins. A sample of several languages does the same in each.
var catalogue = []entry{
	// Sources.
	{
		name: "simple-source", kind: Source, make: sourceOf(builtinsource.Simple),
		does: "counts: 0, 1, 2 and so on, as fast as the pipeline takes it",
		samples: []sample{
			{name: "source-simple-source", languages: "go java"},
			{name: "simple-source", languages: "rs python"},
		},
	},
	{
		name: "source-metadata", kind: Source, make: sourceOf(builtinsource.Metadata),
		does:    "counts from 0 to 99, each with user metadata simple-source/txn-id, and then ends",
		samples: []sample{{name: "source-metadata", languages: "go"}},
	},

	// Transformers.
	{
		name: "assign-event-time", kind: Transformer, make: each(builtin.AssignEventTime),
		does: "sets the event time to when the message came in",
		samples: []sample{
			{name: "mapt-assign-event-time", languages: "go"},
			{name: "source-transformer-now", languages: "rs"},
		},
	},
	{
		name: "event-time-filter", kind: Transformer, make: each(builtin.EventTimeFilter),
		does: "drops what is older than 2022; tags the rest within_year_2022 or after_year_2022 and sets its event time to the start of 2022 or 2023",
		samples: []sample{
			{name: "mapt-event-time-filter", languages: "go python rs"},
			{name: "async-mapt-event-time-filter", languages: "python"},
			{name: "mapt-event-time-filter-function", languages: "java"},
		},
	},
	{
		name: "eventTimeExtractor", kind: Transformer, make: mapOf(builtin.TimeExtractor), takes: []string{"expression", "format"},
		does: "sets the event time to what an expression finds in the payload, read with a Go layout or as one of the usual forms; keeps the event time where that fails",
		samples: []sample{
			{name: "mapt-event-time-extractor", languages: "go", kwargs: map[string]string{"expression": `json(payload).item[1].time`}},
			{name: "mapt-event-time-extractor-with-format", languages: "go", kwargs: map[string]string{"expression": `json(payload).time`, "format": "2006-01-02T15:04:05Z07:00"}},
		},
	},
	{
		name: "timeExtractionFilter", kind: Transformer, make: mapOf(builtin.TimeExtractionFilter), takes: []string{"filterExpr", "eventTimeExpr", "eventTimeFormat"},
		does: "keeps the messages for which an expression is true, and sets their event time as eventTimeExtractor does",
		samples: []sample{
			{name: "mapt-time-extraction-filter", languages: "go", kwargs: map[string]string{"filterExpr": lowID, "eventTimeExpr": `json(payload).time`}},
		},
	},
	{
		name: "transformer-metadata", kind: Transformer, make: each(builtin.MetadataEventTime),
		does:    "sets the event time to when the message came in, and writes it to user metadata event-time-group/event-time",
		samples: []sample{{name: "transformer-metadata", languages: "go"}},
	},

	// Maps; those that do not set the event time serve as transformers too.
	{
		name: "cat", kind: Map, make: whole(builtin.Cat),
		does: "hands each message on as it is",
		samples: []sample{
			{name: "map-cat", languages: "go rs"},
			{name: "map-forward-message", languages: "go python java"},
			{name: "map-async-forward-message", languages: "python"},
			{name: "batchmap-cat", languages: "rs"},
			{name: "multiproc", languages: "python"},
		},
	},
	{
		name: "bypass-cat", kind: Map, make: each(builtin.BypassCat),
		does:    "tags messages that contain fallback, on-success or primary with fallback, onSuccess or sink, and hands all on",
		samples: []sample{{name: "map-bypass-cat", languages: "rs"}},
	},
	{
		name: "bypass-transformer", kind: Transformer, make: each(builtin.BypassTransformer),
		does:    "tags as bypass-cat, and sets the event time to when the message came in",
		samples: []sample{{name: "source-transformer-bypass", languages: "rs"}},
	},
	{
		name: "even-odd", kind: Map, make: each(builtin.EvenOdd),
		does: "gives a whole number the key even or odd and the tag even-tag or odd-tag, and drops anything else",
		samples: []sample{
			{name: "map-even-odd", languages: "go rs"},
			{name: "even-odd", languages: "java python"},
		},
	},
	{
		name: "filter", kind: Map, make: mapOf(builtin.Filter), takes: []string{"expression"},
		does: "keeps the messages for which an expression over the payload is true; a transformer as well",
		samples: []sample{
			{name: "map-filter", languages: "go", kwargs: map[string]string{"expression": goodGreetings}},
			{name: "map-filter-id", languages: "go", kwargs: map[string]string{"expression": lowID}},
			{name: "mapt-filter", languages: "go", kwargs: map[string]string{"expression": goodGreetings}},
		},
	},
	{
		name: "flatmap", kind: Map, make: whole(builtin.Flatmap),
		does: "makes a message of each part of the payload between commas",
		samples: []sample{
			{name: "map-flatmap", languages: "go python java"},
			{name: "map-flatmap-stream", languages: "go python"},
			{name: "flat-map-stream", languages: "java"},
			{name: "flatmap-stream", languages: "rs"},
			{name: "batch-map-flatmap", languages: "go python java"},
			{name: "batchmap-flatmap", languages: "rs"},
		},
	},
	{
		name: "map-metadata", kind: Map, make: mapOf(builtin.Metadata),
		does:    "adds user metadata map-group/map-key=map-value, and prints the groups that were there",
		samples: []sample{{name: "map-metadata", languages: "go"}},
	},
	{
		name: "retry", kind: Map, make: each(builtin.RetryTwice),
		does:    "tags a message retry the first two times it comes, and hands it on the third time; for a vertex with an edge to itself",
		samples: []sample{{name: "map-retry", languages: "go"}},
	},
	{
		name: "slow-cat", kind: Map, make: mapOf(builtin.SlowCat),
		does:    "hands each message on after SLEEP_SECONDS (10), all of a block at the same time",
		samples: []sample{{name: "map-slow-cat", languages: "go"}},
	},
	{
		name: "tickgen", kind: Map, make: each(builtin.Tickgen),
		does: `makes {"Value":...,"Time":...} of {"Data":{"value":...},"Createdts":...}, and drops what is not JSON`,
		samples: []sample{
			{name: "map-tickgen", languages: "go"},
			{name: "map-tickgen-serde", languages: "rs"},
		},
	},

	// Sinks.
	{
		name: "sink-log", kind: Sink, make: sinkOf(builtinsink.Log),
		does: "prints each payload",
		samples: []sample{
			{name: "sink-log", languages: "go python rs"},
			{name: "async-sink-log", languages: "python"},
			{name: "simple-sink", languages: "java"},
		},
	},
	{
		name: "sink-metadata", kind: Sink, make: sinkOf(builtinsink.Metadata),
		does:    "prints the user metadata of each message",
		samples: []sample{{name: "sink-metadata", languages: "go"}},
	},
	{
		name: "fb-sink-log", kind: Sink, make: sinkOf(builtinsink.Fallback),
		does:    "turns each message down, for the fallback sink, and prints it",
		samples: []sample{{name: "fb-sink-log", languages: "go"}},
	},
	{
		name: "on-success-log", kind: Sink, make: sinkOf(builtinsink.OnSuccess),
		does:    "takes each message, prints it, and gives on-success-message to the on-success sink",
		samples: []sample{{name: "on-success-log", languages: "go"}},
	},
	{
		name: "on-success-sink", kind: Sink, make: sinkOf(builtinsink.All),
		does: "takes about half of the messages, which go to the on-success sink as well, and turns the others down for the fallback sink; which, is up to the id",
		samples: []sample{
			{name: "on-success-sink", languages: "go java"},
			{name: "all-sinks", languages: "rs python"},
		},
	},
	{
		name: "sink-failure", kind: Sink, make: sinkOf(builtinsink.Failing),
		does: "fails each message, for the retry strategy",
		samples: []sample{
			{name: "sink-failure", languages: "go"},
			{name: "sink-retry-e2e", languages: "go"},
		},
	},
	{
		name: "sink-panic", kind: Sink, make: sinkOf(builtinsink.Panicking),
		does:    "panics on each message, which is dead-lettered",
		samples: []sample{{name: "sink-panic", languages: "go"}},
	},
	{
		name: "redis-sink", kind: Sink, make: sinkOf(builtinsink.Redis),
		does: "a stand-in without Redis: counts each payload under SINK_HASH_KEY and prints the count; with CHECK_ORDER and MESSAGE_COUNT also whether that many came in the order of their event times",
		samples: []sample{
			{name: "redis-sink", languages: "go rs"},
		},
	},
}

// unsupported are samples of kinds that this version does not have.
var unsupported = map[string]string{
	"reduce-counter": "reduce", "reduce-sum": "reduce", "asyncio-reduce": "reduce",
	"reduce-stream-counter": "streaming reduce", "reduce-stream-sum": "streaming reduce",
	"session-counter": "session reduce", "session-sum": "session reduce", "session-reduce-count": "session reduce",
	"stream-sorter": "accumulator", "streamsorter": "accumulator",
	"sideinput": "side input", "sideinput-example": "side input", "sideinput-function": "side input", "map-sideinput": "side input", "reduce-sideinput": "side input",
	"udf-sideinput": "function with a side input", "udf-sideinput-example": "function with a side input", "map-sideinput-udf": "function with a side input",
	"reduce-sideinput-udf": "reduce with a side input", "simple-source-with-sideinput": "source with a side input", "redis-sink-with-sideinput": "sink with a side input",
	"serving-redis-store": "serving store", "serving-inmem-store": "serving store", "sink-serve": "serving sink",
}
