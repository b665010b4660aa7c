//! Metric families in one of the two formats.

use std::fmt;

use prometheus_client::{
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder,
        NoLabelSet,
    },
    metrics::MetricType,
};

use super::{exposition::Exposition, histogram::Histogram};

/// Writes metric families in one format.
pub(super) struct Families<'a> {
    pub(super) encoder: DescriptorEncoder<'a>,
    pub(super) exposition: Exposition,
}

impl Families<'_> {
    /// A counter for each label set; `name` ends in `_total`.
    pub(super) fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &'static str,
        help: &str,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let name = self.counter_family(name);
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            write_count(self.exposition, family.encode_family(&labels)?, &value)?;
        }
        Ok(())
    }

    /// A counter without labels; `name` ends in `_total`.
    pub(super) fn counter(
        &mut self,
        name: &'static str,
        help: &str,
        value: &(impl EncodeCounterValue + EncodeGaugeValue),
    ) -> fmt::Result {
        let name = self.counter_family(name);
        let family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        write_count(self.exposition, family, value)
    }

    /// A gauge for each label set.
    pub(super) fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &'static str,
        help: &str,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// A gauge without labels.
    pub(super) fn gauge(
        &mut self,
        name: &'static str,
        help: &str,
        value: &impl EncodeGaugeValue,
    ) -> fmt::Result {
        self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(value)
    }

    /// A histogram for each label set; omitted if it has no durations.
    pub(super) fn histograms<'s, L: EncodeLabelSet, const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        samples: impl IntoIterator<Item = (L, &'s Histogram<N>)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, histogram) in samples {
            if histogram.count() > 0 {
                write_histogram(family.encode_family(&labels)?, histogram)?;
            }
        }
        Ok(())
    }

    /// A histogram without labels.
    pub(super) fn histogram<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        histogram: &Histogram<N>,
    ) -> fmt::Result {
        let family = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        write_histogram(family, histogram)
    }

    /// The family name of a counter: with `_total` in the text format, without it in OpenMetrics.
    fn counter_family(&self, name: &'static str) -> &'static str {
        match self.exposition {
            Exposition::Text => name,
            Exposition::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
        }
    }
}

/// The library appends `_total` to a counter's sample; in the text format the family's name
/// already has it.
fn write_count(
    exposition: Exposition,
    mut sample: MetricEncoder<'_>,
    value: &(impl EncodeCounterValue + EncodeGaugeValue),
) -> fmt::Result {
    match exposition {
        Exposition::Text => sample.encode_gauge(value),
        Exposition::OpenMetrics => sample.encode_counter::<NoLabelSet, _, f64>(value, None),
    }
}

fn write_histogram<const N: usize>(
    mut sample: MetricEncoder<'_>,
    histogram: &Histogram<N>,
) -> fmt::Result {
    sample.encode_histogram::<NoLabelSet>(
        histogram.seconds(),
        histogram.count(),
        &histogram.bounded(),
        None,
    )
}
