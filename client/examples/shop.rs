//! A shop whose services talk over queues: `cargo run --example shop -- 127.0.0.1:7101`.
//!
//! Orders are accepted at once, whoever is up. Loyalty and mail each get every order; mail is down for a while and
//! catches up. The catalog tells search and pricing of changed products, and search wants only books. Pricing asks
//! tax, and gets its answers through a queue the other way. Kill a node of the cluster meanwhile, and nothing of this
//! changes.

use std::{
    collections::BTreeSet,
    env,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use skein_client::{Client, Consumer, Delivery, Filter, Message, Position, QueueSettings, SettleError};
use tokio::{task::JoinHandle, time};

const ORDERS: usize = 300;
const PRODUCTS: usize = 60;

/// Between two orders.
const ORDER_INTERVAL: Duration = Duration::from_millis(20);

/// Everything is handled within this after the last order, also when a node was killed.
const CATCH_UP: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let servers: Vec<_> = env::args().skip(1).collect();
    let servers = if servers.is_empty() { vec!["127.0.0.1:7101".to_owned()] } else { servers };
    let client = Client::connect(servers).await?;
    open_queues(&client).await?;
    let tax = tokio::spawn(serve_tax(client.clone()));

    let loyalty = tokio::spawn(take_orders(client.clone(), "loyalty"));
    let mail = tokio::spawn(take_orders_late(client.clone(), "mail"));
    let search = tokio::spawn(take_products(client.clone(), "search", PRODUCTS / 2));
    let pricing = tokio::spawn(price_products(client.clone()));
    tell_of_products(&client).await?;
    accept_orders(&client).await?;

    done("loyalty has seen each order once", loyalty).await?;
    done("mail was down, and has caught up: it has seen each order once", mail).await?;
    done("search knows all the books, and nothing else", search).await?;
    done("pricing has asked tax about each product, and got its answers", pricing).await?;
    tax.abort();
    Ok(())
}

/// Queues that keep everything for the groups that are going to read them, be they up or not.
async fn open_queues(client: &Client) -> anyhow::Result<()> {
    for queue in ["shop.orders", "shop.products", "shop.tax"] {
        client.create_queue(queue, QueueSettings::default()).await?;
    }
    for group in ["loyalty", "mail"] {
        client.create_group("shop.orders", group, Position::First).await?;
    }
    let books = Filter::key_matches("product.book.*");
    client.create_filtered_group("shop.products", "search", Position::First, books).await?;
    client.create_group("shop.products", "pricing", Position::First).await?;
    say("the shop is open")
}

/// The order service: an order is accepted once it is confirmed, whoever handles it and when.
async fn accept_orders(client: &Client) -> anyhow::Result<()> {
    let producer = client.producer("shop.orders").build().await?;
    for number in 0..ORDERS {
        let order = Message::new(format!("order {number}")).key(format!("customer.{}", number % 7));
        producer.send(order).await?.await.with_context(|| format!("order {number} was not accepted"))?;
        if number % 100 == 99 {
            say(&format!("{} orders were accepted", number + 1))?;
        }
        time::sleep(ORDER_INTERVAL).await;
    }
    producer.close().await?;
    Ok(())
}

/// The catalog: half of the products are books.
async fn tell_of_products(client: &Client) -> anyhow::Result<()> {
    let products = (0..PRODUCTS).map(|number| {
        let kind = if number % 2 == 0 { "book" } else { "game" };
        Message::new(format!("{kind} {number}")).key(format!("product.{kind}.{number}"))
    });
    client.send("shop.products", products.collect()).await?;
    say(&format!("the catalog has {PRODUCTS} products"))
}

/// A service that handles every order.
async fn take_orders(client: Client, group: &'static str) -> anyhow::Result<()> {
    let mut consumer = client.consumer("shop.orders", group).build().await?;
    let seen = take(&mut consumer, ORDERS).await?;
    ensure!(seen.len() == ORDERS, "{group} has seen {} orders", seen.len());
    consumer.close().await;
    Ok(())
}

/// The same, but it is down while most orders come in.
async fn take_orders_late(client: Client, group: &'static str) -> anyhow::Result<()> {
    time::sleep(ORDER_INTERVAL * (ORDERS as u32 * 2 / 3)).await;
    let waiting = client.get_group("shop.orders", group).await?.unacked_count;
    say(&format!("{group} is up again, and finds {waiting} orders waiting"))?;
    take_orders(client, group).await
}

/// A service that gets the products that its group wants.
async fn take_products(client: Client, group: &'static str, count: usize) -> anyhow::Result<()> {
    let mut consumer = client.consumer("shop.products", group).build().await?;
    let seen = take(&mut consumer, count).await?;
    ensure!(seen.iter().all(|product| product.starts_with("book")), "{group} got {seen:?}");
    consumer.close().await;
    Ok(())
}

/// Pricing: asks about each product before it is done with it.
async fn price_products(client: Client) -> anyhow::Result<()> {
    let requester = client.requester().await?;
    let mut consumer = client.consumer("shop.products", "pricing").build().await?;
    let mut priced = BTreeSet::new();
    while priced.len() < PRODUCTS {
        let product = consumer.next().await.context("pricing gets no products any more")??;
        let question = Message::new(product.message.body.clone());
        let answer = requester.request("shop.tax", question, Duration::from_secs(20)).await?;
        let text = std::str::from_utf8(&answer.body)?;
        ensure!(text.ends_with("19 %") || text.ends_with("7 %"), "tax answered {text:?}");
        priced.insert(product.offset);
        settle(&product).await?;
    }
    requester.close().await;
    consumer.close().await;
    Ok(())
}

/// Tax: books have their own rate.
async fn serve_tax(client: Client) -> anyhow::Result<()> {
    let rate = |product: Message| async move {
        let product = String::from_utf8(product.body.to_vec())?;
        let rate = if product.starts_with("book") { 7 } else { 19 };
        Ok(Message::new(format!("{product}: {rate} %")))
    };
    client.serve("shop.tax", rate).await?;
    Ok(())
}

/// Takes messages until there were so many different ones, and acks each.
async fn take(consumer: &mut Consumer, count: usize) -> anyhow::Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    let mut unsettled = BTreeSet::new();
    while seen.len() < count {
        let delivery = consumer.next().await.context("nothing comes any more")??;
        let is_new = seen.insert(String::from_utf8(delivery.message.body.to_vec())?);
        let may_come_again = delivery.attempt > 1 || unsettled.contains(&delivery.offset);
        ensure!(is_new || may_come_again, "it came twice without a reason: {delivery:?}");
        if !settle(&delivery).await? {
            unsettled.insert(delivery.offset);
        }
    }
    Ok(seen)
}

/// Acks a message that was handled. Whether that counted cannot always be told when a node dies: then the message may
/// come again, and is known by its offset.
async fn settle(delivery: &Delivery) -> anyhow::Result<bool> {
    match delivery.ack().await {
        Ok(()) => Ok(true),
        Err(SettleError::OutcomeUnknown(_) | SettleError::LeaseLost(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn done(what: &str, service: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    time::timeout(CATCH_UP, service).await.with_context(|| format!("it took too long until {what}"))???;
    say(what)
}

fn say(what: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{what}").context("nobody listens")
}
